package peerapi

import (
	"testing"
	"time"
)

// FuzzParseSince: a parsed time can be formatted and parsed again.
func FuzzParseSince(f *testing.F) {
	for _, seed := range []string{"2026-01-02 03:04:05", "2026-01-02T03:04:05", "2026-01-02T03:04:05+14:00", "2026-01-02", "0000-01-01", "9999-12-31T23:59:59-23:59", "", "2026-02-30"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		since, ok := parseSince(text)
		if !ok {
			return
		}
		if again, ok := parseSince(since.Format(time.DateTime)); since.Year() >= 0 && since.Year() <= 9999 && (!ok || !again.Equal(since.Truncate(time.Second))) {
			t.Errorf("%q is %v, and then %v, %v", text, since, again, ok)
		}
	})
}
