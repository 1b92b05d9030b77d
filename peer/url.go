package peer

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"nar-herder/internal/redact"
)

// ParseURL reads the URL of an instance, below which its nars and answers are. A
// user and password in it stay.
func ParseURL(text string) (*url.URL, error) {
	parsed, err := url.Parse(text)
	text = redact.Address(text) // for messages
	switch {
	case err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Hostname() == "":
		return nil, fmt.Errorf("invalid URL of an instance %q: want http://HOST or https://HOST, with a port and path if needed", text)
	// The paths of nars are put behind it, and would end up in these.
	case parsed.RawQuery != "" || parsed.ForceQuery:
		return nil, fmt.Errorf("invalid URL of an instance %q: leave out the query, from the ? on", text)
	case parsed.Fragment != "":
		return nil, fmt.Errorf("invalid URL of an instance %q: leave out the fragment, from the # on", text)
	}
	return parsed, nil
}

func trimmed(base *url.URL) string { return strings.TrimSuffix(base.String(), "/") }

// Name returns the URL of an instance without user and password, and without a slash
// at its end. It identifies the instance: two URLs with the same name lead to one
// peer.
func Name(base *url.URL) string { return strings.TrimSuffix(redact.URL(base), "/") }

// SameURL says whether two URLs lead to one peer.
func SameURL(a, b *url.URL) bool { return Name(a) == Name(b) }

// explain takes off the URL, which is long and is named already, and says what to
// do about certificates. The error has no password in it: [net/http.Client] repeats a
// redirection that it can't parse.
func explain(err error) error {
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
