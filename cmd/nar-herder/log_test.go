package main

import (
	"errors"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"

	"nar-herder/internal/testlog"
)

// TestLog: lines of requests are buffered, more important ones are written at once, and all
// are complete and in order.
func TestLog(t *testing.T) {
	t.Parallel()
	out := new(testlog.Buffer)
	log, writer := newLogger(out, slog.LevelDebug, "text")
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
	writer.Close()
	writer.Close()
	whole := 0
	for line := range strings.Lines(out.String()) {
		if strings.HasSuffix(line, "msg=request path="+strings.Repeat("x", 100)+"\n") && strings.HasPrefix(line, "time=") {
			whole++
		}
	}
	if whole != 8*each {
		t.Errorf("%d of %d lines are complete", whole, 8*each)
	}
	log.Debug("late")
	if !strings.HasSuffix(out.String(), "msg=late\n") {
		t.Error("a line after the end is lost")
	}
}

// TestLogOneLine: joined errors are one line.
func TestLogOneLine(t *testing.T) {
	t.Parallel()
	for format, want := range map[string]string{"text": `error="first; second"`, "json": `"error":"first; second"`} {
		out := new(testlog.Buffer)
		log, writer := newLogger(out, slog.LevelWarn, format)
		log.Warn("trouble", "error", errors.Join(errors.New("first"), errors.New("second")))
		writer.Close()
		if got := out.String(); !strings.Contains(got, want) {
			t.Errorf("%s: %q", format, got)
		}
	}
}

func TestLogLevel(t *testing.T) {
	t.Parallel()
	out := new(testlog.Buffer)
	log, writer := newLogger(out, slog.LevelWarn, "text")
	defer writer.Close()
	log.Info("no")
	log.Debug("no")
	log.Warn("yes")
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, "msg=yes") {
		t.Errorf("%q", got)
	}
}

// shown is a fmt.Stringer.
type shown struct{ text string }

func (s shown) String() string { return s.text }

// TestLogSecrets logs URLs with passwords as values of several types.
func TestLogSecrets(t *testing.T) {
	t.Parallel()
	const text = "https://user:it%27s-hunter2@x.example/a"
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	out := new(testlog.Buffer)
	log := slog.New(newLogHandler(out, slog.LevelDebug))
	for _, value := range []any{text, u, shown{text}, &shown{text}, errors.New(text), []string{text}, []*url.URL{u}, struct{ URL *url.URL }{u}} {
		before := len(out.String())
		log.Info("asked", "of", value)
		if line := out.String()[before:]; strings.Contains(line, "hunter2") || !strings.Contains(line, "https://xxxxx@x.example/a") || !strings.Contains(line, " level=INFO ") {
			t.Errorf("%T: %q", value, line)
		}
	}
	// Nothing else changes.
	log.With("a", 1).Warn("x", "address", netip.MustParseAddr("::1"), "url", (*url.URL)(nil), "nil", nil, "ok", true)
	if got := out.String(); !strings.HasSuffix(got, "level=WARN msg=x a=1 address=::1 url=<nil> nil=<nil> ok=true\n") {
		t.Errorf("%q", got)
	}
}
