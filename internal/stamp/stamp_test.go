package stamp

import (
	"testing"
	"time"
)

func TestPast(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for stored, want := range map[time.Time]time.Time{
		{}: {}, now.Add(-1): now.Add(-1), now: now, now.Add(Slack): now.Add(Slack), now.Add(Slack + 1): now, now.AddDate(100, 0, 0): now,
	} {
		if got := Past(stored, now); got != want || IsAhead(stored, now) == (got == stored) {
			t.Errorf("%v counts as %v, want %v", stored, got, want)
		}
	}
}
