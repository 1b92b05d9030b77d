package peer

import (
	"fmt"
	"net/url"

	"nar-herder/internal/redact"
)

// ParseURL reads the URL of an instance, below which its nars and answers are. A
// user and password in it stay.
func ParseURL(text string) (*url.URL, error) {
	parsed, err := url.Parse(text)
	text = redact.Text(text) // for messages
	switch {
	case err != nil || parsed.Scheme != "http" && parsed.Scheme != "https" || parsed.Hostname() == "":
		return nil, fmt.Errorf("%q is no URL of an instance: http://HOST or https://HOST, perhaps with port and path", text)
	// The paths of nars are put behind it, and would end up in these.
	case parsed.RawQuery != "" || parsed.ForceQuery:
		return nil, fmt.Errorf("%q is no URL of an instance: leave out the query, from the ? on", text)
	case parsed.Fragment != "":
		return nil, fmt.Errorf("%q is no URL of an instance: leave out the fragment, from the # on", text)
	}
	return parsed, nil
}
