package cachecontrol

import (
	"testing"
	"time"
)

func TestMaxAge(t *testing.T) {
	t.Parallel()
	if got := MaxAge(nil); got != "" {
		t.Errorf("MaxAge(nil) = %q", got)
	}
	for ttl, want := range map[time.Duration]string{
		0:                         "max-age=0",
		time.Second:               "max-age=1",
		30 * 24 * time.Hour:       "max-age=2592000",
		9223372036 * time.Second:  "max-age=9223372036",
		1500 * time.Millisecond:   "max-age=1",
		time.Duration(1<<63 - 1):  "max-age=9223372036",
		5 * time.Hour:             "max-age=18000",
		7 * 24 * 60 * time.Minute: "max-age=604800",
	} {
		if got := MaxAge(&ttl); got != want {
			t.Errorf("MaxAge(%v) = %q, want %q", ttl, got, want)
		}
	}
}
