// Package redact removes secrets from URLs that people read.
package redact

import (
	"net/url"
	"regexp"
	"strings"
)

// secrets are the parts of URLs that only their owner should read. A match ends at the
// last @, as a password that isn't percent-encoded may contain anything.
var secrets = []struct {
	form  *regexp.Regexp
	shown string
}{
	// The user and password.
	{regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*:/+)[^\s"'<>]*@`), "${1}xxxxx@"},
	// Those of a URL within the query of another.
	{regexp.MustCompile(`(?i)(%3A%2F%2F)[^\s"'&]*(%40|@)`), "${1}xxxxx${2}"},
	// Parameters that sound like keys.
	{regexp.MustCompile(`(?i)([?&][^\s"'=&]*(?:key|secret|token|pass)[^\s"'=&]*=)[^\s"'&]*`), "${1}xxxxx"},
}

// Text replaces the secrets of each URL in a text, also of one that is not well-formed. A
// user alone is replaced as well, as it may be a token.
func Text(text string) string {
	if !strings.ContainsAny(text, "@=%") {
		return text
	}
	for _, secret := range secrets {
		text = secret.form.ReplaceAllString(text, secret.shown)
	}
	return text
}

// URL returns a URL without its user and password, and without a query, where signatures
// and tokens are.
func URL(u *url.URL) string {
	public := *u
	public.User, public.RawQuery, public.ForceQuery = nil, "", false
	return public.String()
}
