package page

import (
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"nar-herder/internal/redact"
)

// placeholder stands for the URL of a server that doesn't know it.
const placeholder = "http://THIS-SERVER"

// forwarded are fields of proxies. The Host in such a request may be that of the server behind
// the proxy, and its path may differ.
var forwarded = []string{"Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip"}

var (
	// plainHost has no character that a shell or Scheme interprets within double quotes.
	plainHost = regexp.MustCompile(`^([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?$`)
	plainPath = regexp.MustCompile(`^(/[A-Za-z0-9._~%+-]+)*$`)
)

// ParseURL returns the URL at which clients reach a server, without a slash at the end. Commands
// contain it, so it must not have characters that a shell interprets.
func ParseURL(text string) (string, error) {
	parsed, err := url.Parse(text)
	switch {
	case err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Host == "":
		return "", fmt.Errorf("invalid URL %q: want https://HOST or http://HOST, with a port and path if needed", redact.Address(text))
	case parsed.User != nil:
		return "", fmt.Errorf("invalid URL %q: everybody sees it: leave out the user and password", redact.Address(text))
	case parsed.RawQuery != "" || parsed.ForceQuery || parsed.Fragment != "" || strings.HasSuffix(text, "#"):
		return "", fmt.Errorf("invalid URL %q: leave out the query and the fragment", redact.Address(text))
	}
	path := strings.TrimRight(parsed.EscapedPath(), "/")
	if !plainHost.MatchString(parsed.Host) || !plainPath.MatchString(path) {
		return "", fmt.Errorf("invalid URL %q: want only letters, digits, and . _ ~ %% + - in its host and path", redact.Address(text))
	}
	return parsed.Scheme + "://" + parsed.Host + path, nil
}

// url returns the URL of the server for clients, and whether it is a guess. host is the address
// in a request that no proxy has forwarded, or "".
func (s *Site) url(host string) (string, bool) {
	switch {
	case s.options.URL != "":
		return s.options.URL, false
	case plainHost.MatchString(host):
		return "http://" + host, true
	}
	return placeholder, true
}

// CheckText returns an error if a text of an option can't be shown in one line.
func CheckText(text string) error {
	const limit = 200
	switch {
	case strings.TrimSpace(text) == "":
		return fmt.Errorf("invalid text %q: it is empty", text)
	case len(text) > limit:
		return fmt.Errorf("invalid text of %d bytes: want at most %d", len(text), limit)
	case strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f || r == 0xfffd }):
		return fmt.Errorf("invalid text %q: want UTF-8 without control characters", text)
	}
	return nil
}
