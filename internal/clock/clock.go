// Package clock has the rule for times that were stored, and are compared with the
// clock.
package clock

import "time"

// Past returns a stored time of something that has happened as it counts now. One that
// is yet to come was written while the clock was ahead: it counts as now, since that
// is the latest that it can have been.
func Past(stored, now time.Time) time.Time {
	if stored.After(now) {
		return now
	}
	return stored
}

// Until returns the stored end of a period, no longer than most, as it counts now. One
// that is further ahead was written while the clock was.
func Until(stored, now time.Time, most time.Duration) time.Time {
	return Past(stored, now.Add(most))
}
