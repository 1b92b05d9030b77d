// Package redact removes user names and passwords from URLs that people read.
package redact

import (
	"net/url"
	"regexp"
	"strings"
)

// userinfo matches a URL up to the @ behind its user and password. Up to the last @, as a
// password that isn't percent-encoded may contain anything.
var userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*:/+)[^\s"'<>]*@`)

// Text replaces the user and password of each URL in a text, also of one that is not
// well-formed. A user alone is replaced as well, as it may be a token.
func Text(text string) string {
	if !strings.Contains(text, "@") || !strings.Contains(text, ":/") {
		return text
	}
	return userinfo.ReplaceAllString(text, "${1}xxxxx@")
}

// URL returns a URL without its user and password, and without a query, where signatures
// and tokens are.
func URL(u *url.URL) string {
	public := *u
	public.User, public.RawQuery, public.ForceQuery = nil, "", false
	return public.String()
}
