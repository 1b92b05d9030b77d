package redact

import (
	"errors"
	"net/http"
	"net/url"
)

// Proxy is [http.ProxyFromEnvironment], but its errors don't contain the variable, which may
// include a password.
func Proxy(request *http.Request) (*url.URL, error) {
	proxy, err := http.ProxyFromEnvironment(request)
	if err != nil {
		return nil, errors.New("the environment variable HTTP_PROXY or HTTPS_PROXY can't be used: it is not a valid URL, or REQUEST_METHOD is set, as in a CGI program")
	}
	return proxy, nil
}
