// Package stamp has the rule for times that were stored, maybe while a clock was wrong.
package stamp

import "time"

// Slack is how far a stored time may be ahead of the clock: it may be another
// machine's, or the clock may have been set back a little.
const Slack = 24 * time.Hour

// IsAhead says whether a time is so far ahead that the clock is wrong, or was when the
// time was stored.
func IsAhead(stored, now time.Time) bool { return stored.After(now.Add(Slack)) }

// Past returns the time of something that has happened, as it counts now: as now, the
// latest that it can have been, where the stored time is ahead. The stored one is to
// stay, in case it is now that the clock is wrong.
func Past(stored, now time.Time) time.Time {
	if IsAhead(stored, now) {
		return now
	}
	return stored
}

// earliest is when Guix began: the clock of a machine without a battery says 1970 until it
// is set.
var earliest = time.Date(2012, 4, 18, 0, 0, 0, 0, time.UTC)

// IsEarly says whether a time was stored while the clock had not been set yet. None is as
// long as that of now hasn't been set either.
func IsEarly(stored, now time.Time) bool {
	return stored.Before(earliest) && !stored.IsZero() && !now.Before(earliest)
}

// IsWrong says whether a time was stored by a wrong clock, as far as that can be known.
func IsWrong(stored, now time.Time) bool { return IsAhead(stored, now) || IsEarly(stored, now) }

// Earliest returns the time before which IsEarly is true.
func Earliest(now time.Time) time.Time {
	if now.Before(earliest) {
		return time.Time{}
	}
	return earliest
}
