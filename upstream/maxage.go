package upstream

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// longest bounds what an upstream may say, in seconds: 10 years.
const longest = 10 * 365 * 24 * 60 * 60

// maxAge returns how long an answer may be cached from now on; negative if it doesn't say.
func maxAge(header http.Header) time.Duration {
	age, said := int64(-1), false
	for _, line := range header.Values("Cache-Control") {
		for directive := range strings.SplitSeq(line, ",") {
			name, value, _ := strings.Cut(strings.TrimSpace(directive), "=")
			switch strings.ToLower(name) {
			case "max-age":
				if seconds, ok := parseSeconds(strings.Trim(value, `"`)); ok && (!said || seconds < age) {
					age, said = seconds, true
				}
			case "no-store", "no-cache":
				age, said = 0, true
			}
		}
	}
	if !said {
		return -1
	}
	// A cache between the upstream and this server has had it for some time.
	if past, ok := parseSeconds(header.Get("Age")); ok {
		age = max(0, age-past)
	}
	return time.Duration(age) * time.Second
}

func parseSeconds(text string) (int64, bool) {
	text = strings.TrimSpace(text)
	seconds, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return longest, strings.Trim(text, "0123456789") == "" && text != ""
	}
	return int64(min(seconds, longest)), true
}
