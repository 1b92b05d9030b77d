// Package stamp checks stored times, which a wrong clock may have set.
package stamp

import "time"

// Slack is how far a stored time may be ahead of the clock: it may be from another machine, or
// the clock may have been set back a little.
const Slack = 24 * time.Hour

// IsAhead reports whether a time is so far ahead that the clock is wrong, or was when the time
// was stored.
func IsAhead(stored, now time.Time) bool { return stored.After(now.Add(Slack)) }

// Past returns when a past event happened: the stored time, or now if that is ahead. Don't
// replace the stored time, as the clock may be wrong now.
func Past(stored, now time.Time) time.Time {
	if IsAhead(stored, now) {
		return now
	}
	return stored
}

// earliest is the beginning of Guix: a machine without a clock battery starts in 1970.
var earliest = time.Date(2012, 4, 18, 0, 0, 0, 0, time.UTC)

// IsEarly reports whether a time was stored before the clock was set. It returns false while
// the clock isn't set now either.
func IsEarly(stored, now time.Time) bool {
	return stored.Before(earliest) && !stored.IsZero() && !now.Before(earliest)
}

// IsWrong reports whether a wrong clock stored a time, as far as that can be known.
func IsWrong(stored, now time.Time) bool { return IsAhead(stored, now) || IsEarly(stored, now) }

// Earliest returns the time before which IsEarly returns true.
func Earliest(now time.Time) time.Time {
	if now.Before(earliest) {
		return time.Time{}
	}
	return earliest
}
