package recentlog

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestLog(t *testing.T) {
	t.Parallel()
	l := New(3)
	log := slog.New(l)
	if len(l.Events()) != 0 {
		t.Error("events of an empty log")
	}
	log.Debug("not kept")
	for n := range 5 {
		log.Info(fmt.Sprint("event ", n), "n", n)
	}
	events := l.Events()
	if len(events) != 3 || events[0].Message != "event 4" || events[2].Message != "event 2" || events[0].Attributes != "n=4" || events[0].At.IsZero() || events[0].IsWarning() {
		t.Errorf("%+v", events)
	}
	log.With("a", 1).WithGroup("g").With("b", 2).WithGroup("").Warn("x", slog.Group("h", "c", 3), slog.Group("", "d", 4), "e", errors.New("bad"))
	event := l.Events()[0]
	if event.Attributes != "a=1 g.b=2 g.h.c=3 g.d=4 g.e=bad" || !event.IsWarning() {
		t.Errorf("%+v", event)
	}
}

// TestSecrets: the texts have no passwords of URLs, and a bounded length.
func TestSecrets(t *testing.T) {
	t.Parallel()
	l := New(2)
	log := slog.New(l)
	log.With("with", "https://u:secret@x").Error("get https://u:secret@x.example/y", "url", "https://u:secret@x", "error", errors.New("ask https://u:secret@x/?token=secret"))
	if text := fmt.Sprint(l.Events()); strings.Contains(text, "secret") || !strings.Contains(text, "x.example/y") {
		t.Error(text)
	}
	log.Info(strings.Repeat("ü", 5000), "x", strings.Repeat("y", 5000))
	if event := l.Events()[0]; len(event.Message) > maxText+5 || len(event.Attributes) > maxText+5 {
		t.Errorf("%d, %d bytes", len(event.Message), len(event.Attributes))
	}
}
