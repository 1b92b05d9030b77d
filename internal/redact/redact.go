// Package redact removes secrets from URLs that people read.
package redact

import (
	"net/url"
	"regexp"
	"strings"
)

// secrets are the parts of URLs that only their owner should read. White space alone
// ends a URL, as administrators don't always percent-encode a password, and a match goes
// up to the last @.
var secrets = []struct {
	form  *regexp.Regexp
	shown string
}{
	// The user and password.
	{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*:/+)\S*@`), "${1}xxxxx@"},
	// Those of a URL without a scheme.
	{regexp.MustCompile(`[^\s:/@"'=]+:[^\s/]+@`), "xxxxx@"},
	// Those of a URL within the query of another.
	{regexp.MustCompile(`(?i)(%3A%2F%2F)[^\s&]*(%40|@)`), "${1}xxxxx${2}"},
}

// parameter matches a query parameter whose name is that of a key or signature.
// "credentials" is not among them: it names a file.
var parameter = regexp.MustCompile(`(?i)([?&](?:[^\s"'=&]*(?:key|secret|token|pass|signature)[^\s"'=&]*|[^\s"'=&]*credential|(?:[^\s"'=&]*[-_])?sig)=)([^\s&]*)`)

// Text replaces the secrets of each URL in a text, also of one that is not well-formed. A
// user alone is replaced as well, as it may be a token.
func Text(text string) string {
	if !strings.ContainsAny(text, "@=%") {
		return text
	}
	for _, secret := range secrets {
		text = secret.form.ReplaceAllString(text, secret.shown)
	}
	return parameter.ReplaceAllStringFunc(text, func(match string) string {
		parts := parameter.FindStringSubmatch(match)
		// Keep the quote or punctuation that follows the URL.
		value := strings.TrimRight(parts[2], `"'<>()[]{},;:.`)
		return parts[1] + "xxxxx" + parts[2][len(value):]
	})
}

var scheme = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9+.-]*:/+`)

// Address replaces the secrets of a text that was meant to be one URL: all that precedes
// the last @, except a scheme.
func Address(text string) string {
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		text = scheme.FindString(text[:i]) + "xxxxx" + text[i:]
	}
	return Text(text)
}

// URL returns a URL without its user and password, and without a query, where signatures
// and tokens are.
func URL(u *url.URL) string {
	public := *u
	public.User, public.RawQuery, public.ForceQuery = nil, "", false
	return public.String()
}
