package peer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"nar-herder/internal/redact"
)

// ParseURL parses the base URL of an instance, including user and password.
func ParseURL(text string) (*url.URL, error) {
	parsed, err := url.Parse(text)
	text = redact.Address(text) // for messages
	switch {
	case err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Hostname() == "":
		return nil, fmt.Errorf("invalid URL of an instance %q: want http://HOST or https://HOST, with a port and path if needed", text)
	// Paths are appended to the URL, and would end up in these.
	case parsed.RawQuery != "" || parsed.ForceQuery:
		return nil, fmt.Errorf("invalid URL of an instance %q: leave out the query, from the ? on", text)
	case parsed.Fragment != "":
		return nil, fmt.Errorf("invalid URL of an instance %q: leave out the fragment, from the # on", text)
	}
	return parsed, nil
}

func trimmed(base *url.URL) string { return strings.TrimSuffix(base.String(), "/") }

// Name returns the URL of an instance without user, password and final slash. Two URLs with
// the same name are one peer.
func Name(base *url.URL) string { return strings.TrimSuffix(redact.URL(base), "/") }

// SameURL reports whether two URLs are one peer.
func SameURL(a, b *url.URL) bool { return Name(a) == Name(b) }

// Explain removes the URL from an error, since callers name it, and any password, which
// [net/http.Client] quotes from a redirect that it can't parse. It adds advice about
// certificates.
func Explain(err error) error {
	var request *url.Error
	if errors.As(err, &request) {
		err = request.Err
	}
	var unknown x509.UnknownAuthorityError
	var none x509.SystemRootsError
	if errors.As(err, &unknown) || errors.As(err, &none) {
		return fmt.Errorf("%w: this machine has no certificate that vouches for the server: install CA certificates, and name them in SSL_CERT_DIR or SSL_CERT_FILE", err)
	}
	switch text := err.Error(); {
	case strings.HasPrefix(text, "failed to parse Location header"):
		return errors.New("it redirects to what is not a valid URL")
	case redact.Text(text) != text:
		return errors.New(redact.Text(text))
	}
	return err
}
