package narinfo

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"
)

// UnadvertisedTTL is how long clients keep a narinfo that came without a time to
// live: Guix's %narinfo-ttl.
const UnadvertisedTTL = 36 * time.Hour

// LongestTTL is how long a client may hold a narinfo. While newTTL is given, it
// is what narinfos advertise, and ttl is what they did before: the longer of the
// two counts. otherwise is what they do, or did, without; nil advertises nothing.
func LongestTTL(ttl, newTTL *time.Duration, otherwise time.Duration) time.Duration {
	if ttl == nil && newTTL == nil {
		return otherwise
	}
	if ttl == nil {
		ttl = &otherwise
	}
	if newTTL == nil {
		newTTL = ttl
	}
	return max(*ttl, *newTTL)
}

var durationForm = regexp.MustCompile(`^([0-9]+)([shdwm])$`)

// ParseDuration reads a duration as Guix's services write it. There are no
// minutes: m is a month of 30 days.
func ParseDuration(text string) (time.Duration, error) {
	parts := durationForm.FindStringSubmatch(text)
	if parts == nil {
		return 0, fmt.Errorf("invalid duration %q: want a number and one of s, h, d, w, m (months of 30 days), such as 5d", text)
	}
	unit := map[string]time.Duration{
		"s": time.Second, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour, "m": 30 * 24 * time.Hour,
	}[parts[2]]
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || n > int64(math.MaxInt64/unit) {
		return 0, fmt.Errorf("%q is too long: at most %d%s", text, int64(math.MaxInt64/unit), parts[2])
	}
	return time.Duration(n) * unit, nil
}
