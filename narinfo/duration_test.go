package narinfo

import (
	"strings"
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"0s": 0, "5s": 5 * time.Second, "5min": 5 * time.Minute, "3h": 3 * time.Hour, "5d": 5 * day, "2w": 14 * day, "1mo": 30 * day, "007d": 7 * day,
		"9223372036s": 9223372036 * time.Second, "153722867min": 153722867 * time.Minute, "3558mo": 3558 * 30 * day,
	} {
		for name, parse := range map[string]func(string) (time.Duration, error){"new": ParseDuration, "Guix's": ParseGuixDuration} {
			if got, err := parse(text); err != nil || got != want {
				t.Errorf("%s: %s: %v, %v, want %v", name, text, got, err, want)
			}
		}
	}
	for text, want := range map[string]time.Duration{"0m": 0, "5m": 150 * day, "3558m": 3558 * 30 * day} {
		if got, err := ParseGuixDuration(text); err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	for text, wanted := range map[string]string{
		"0m": "0min", "5m": `ambiguous duration "5m": write 5min for minutes, or 5mo for months of 30 days`, "99999999999999999999m": "mo",
	} {
		if got, err := ParseDuration(text); err == nil || !strings.Contains(err.Error(), wanted) {
			t.Errorf("%s: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		"", "s", "min", "5", "5 s", "5S", "5M", "5y", "5ms", "5mi", "5mins", "5m5s", "1h5min", "-5s", "+5s", "5s\n", "5.0s", "\u0665s",
		"9223372037s", "153722868min", "3559mo", "99999999999999999999s",
	} {
		for name, parse := range map[string]func(string) (time.Duration, error){"new": ParseDuration, "Guix's": ParseGuixDuration} {
			if got, err := parse(text); err == nil {
				t.Errorf("%s: %q: %v", name, text, got)
			}
		}
	}
}
