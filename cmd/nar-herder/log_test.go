package main

import (
	"log/slog"
	"strings"
	"sync"
	"testing"

	"nar-herder/internal/testlog"
)

// TestLog has the lines of requests gathered, those of more weight written at
// once, and all of them in order and whole.
func TestLog(t *testing.T) {
	t.Parallel()
	out := new(testlog.Buffer)
	log, closeLog := newLogger(out, slog.LevelDebug)
	log.Debug("first")
	log.With("a", 1).WithGroup("g").Info("second", "b", 2)
	if got := out.String(); !strings.Contains(got, "msg=first\n") || !strings.HasSuffix(got, "msg=second a=1 g.b=2\n") {
		t.Errorf("after a line of level INFO: %q", got)
	}
	log.Debug("third")
	until(t, "a line of level DEBUG is written", func() bool { return strings.HasSuffix(out.String(), "msg=third\n") })

	var group sync.WaitGroup
	const each = 1000
	for range 8 {
		group.Go(func() {
			for range each {
				log.Debug("request", "path", strings.Repeat("x", 100))
			}
		})
	}
	group.Wait()
	closeLog()
	closeLog()
	whole := 0
	for line := range strings.Lines(out.String()) {
		if strings.HasSuffix(line, "msg=request path="+strings.Repeat("x", 100)+"\n") && strings.HasPrefix(line, "time=") {
			whole++
		}
	}
	if whole != 8*each {
		t.Errorf("%d whole lines of %d", whole, 8*each)
	}
	log.Debug("late")
	if !strings.HasSuffix(out.String(), "msg=late\n") {
		t.Error("a line after the end is lost")
	}
}

func TestLogLevel(t *testing.T) {
	t.Parallel()
	out := new(testlog.Buffer)
	log, closeLog := newLogger(out, slog.LevelWarn)
	defer closeLog()
	log.Info("no")
	log.Debug("no")
	log.Warn("yes")
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "msg=yes") {
		t.Errorf("%q", got)
	}
}
