package narinfo

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"time"
)

// Month is what Guix's services count as a month.
const Month = 30 * 24 * time.Hour

var durationForm = regexp.MustCompile(`^([0-9]+)(s|min|h|d|w|mo|m)$`)

var durationUnits = map[string]time.Duration{
	"s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour, "mo": Month, "m": Month,
}

// ParseDuration reads a duration: a number and one of s, min, h, d, w and mo. It refuses
// m, which is a month in Guix's services and a minute nearly everywhere else.
func ParseDuration(text string) (time.Duration, error) {
	if parts := durationForm.FindStringSubmatch(text); parts != nil && parts[2] == "m" {
		return 0, fmt.Errorf("ambiguous duration %q: write %[2]smin for minutes, or %[2]smo for months of 30 days", text, parts[1])
	}
	return ParseGuixDuration(text)
}

// ParseGuixDuration is ParseDuration for the values that Guix's services define: m is a
// month there.
func ParseGuixDuration(text string) (time.Duration, error) {
	parts := durationForm.FindStringSubmatch(text)
	if parts == nil {
		return 0, fmt.Errorf("invalid duration %q: want a number and one of s, min, h, d, w, mo (months of 30 days), such as 5d", text)
	}
	unit := durationUnits[parts[2]]
	n, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil || n > int64(math.MaxInt64/unit) {
		return 0, fmt.Errorf("%q is too long: at most %d%s", text, int64(math.MaxInt64/unit), parts[2])
	}
	return time.Duration(n) * unit, nil
}
