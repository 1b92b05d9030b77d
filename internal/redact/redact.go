// Package redact removes secrets from URLs in messages.
package redact

import (
	"net/url"
	"regexp"
	"strings"
)

// secrets are the secret parts of URLs. Only white space ends a URL, and a match extends to
// the last @, as administrators don't always percent-encode a password.
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

// parameter matches query parameters with the name of a key or signature, but not
// "credentials", which names a file.
var parameter = regexp.MustCompile(`(?i)([?&](?:[^\s"'=&]*(?:key|secret|token|pass|signature)[^\s"'=&]*|[^\s"'=&]*credential|(?:[^\s"'=&]*[-_])?sig)=)([^\s&]*)`)

// Text replaces the secrets of each URL in a text, even if it is malformed. It also replaces a
// user without a password, as that may be a token.
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

// Address replaces the secrets of a text that is meant to be one URL: everything before the
// last @, except the scheme.
func Address(text string) string {
	if i := strings.LastIndexByte(text, '@'); i >= 0 {
		text = scheme.FindString(text[:i]) + "xxxxx" + text[i:]
	}
	return Text(text)
}

// URL returns a URL without user, password and query, which may contain signatures and
// tokens.
func URL(u *url.URL) string {
	public := *u
	public.User, public.RawQuery, public.ForceQuery = nil, "", false
	return public.String()
}
