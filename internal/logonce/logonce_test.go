package logonce

import (
	"fmt"
	"testing"
	"time"
)

func TestFilter(t *testing.T) {
	t.Parallel()
	var f Filter
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, step := range []struct {
		later time.Duration
		text  string
		want  bool
	}{
		{0, "a", true}, {0, "a", false}, {time.Minute, "b", true}, {0, "a", false},
		{Every - time.Minute, "a", true}, {0, "b", false}, {time.Minute, "b", true},
	} {
		if now = now.Add(step.later); f.IsDue(step.text, now) != step.want {
			t.Errorf("%v: want %v", step, step.want)
		}
	}
	f.Forget()
	if !f.IsDue("a", now) {
		t.Error("a forgotten text is not due")
	}
	for n := range 10 * mostTexts {
		if !f.IsDue(fmt.Sprint(n), now) || f.IsDue(fmt.Sprint(n), now) {
			t.Errorf("text %d", n)
		}
	}
	if len(f.logged) > mostTexts {
		t.Errorf("%d texts are remembered", len(f.logged))
	}
}
