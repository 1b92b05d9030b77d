package upstream_test

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"nar-herder/upstream"
)

func TestMaxAge(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"": -1, "public": -1, "max-age=60": time.Minute, "public, Max-Age=60, immutable": time.Minute, `max-age="60"`: time.Minute,
		"max-age=0": 0, "no-cache": 0, "max-age=60, no-store": 0, "max-age=-1": -1, "max-age": -1, "max-age=1.5": -1, "x-max-age=5": -1,
		"max-age=60|Age: 20": 40 * time.Second, "max-age=60|Age: 99": 0, "max-age=60|Age: x": time.Minute, "|Age: 5": -1,
		"max-age=60, max-age=50": 50 * time.Second, "max-age=99999999999999999999999": 87600 * time.Hour, "max-age=9999999999": 87600 * time.Hour,
	} {
		line, age, _ := strings.Cut(text, "|Age: ")
		header := http.Header{"Cache-Control": {line}}
		if age != "" {
			header.Set("Age", age)
		}
		if want < 0 {
			want = -1
		}
		if got := upstream.MaxAge(header); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// FuzzMaxAge: whatever an upstream says, the result is -1 or between 0 and 10 years.
func FuzzMaxAge(f *testing.F) {
	f.Add("max-age=60", "5")
	f.Add("max-age=99999999999999999999999, no-store", "99999999999999999999")
	f.Add(`private="x,max-age=1", max-age="`, "-1")
	f.Fuzz(func(t *testing.T, control, age string) {
		got := upstream.MaxAge(http.Header{"Cache-Control": {control}, "Age": {age}})
		if got != -1 && (got < 0 || got > 87600*time.Hour) {
			t.Error(got)
		}
	})
}
