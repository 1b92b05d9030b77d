package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/redact"
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

// TestLogVisible: no control character of another machine is in the log, in either format.
func TestLogVisible(t *testing.T) {
	t.Parallel()
	for _, format := range []string{"text", "json"} {
		out := new(testlog.Buffer)
		log := slog.New(newHandler(out, slog.LevelInfo, format, false))
		log.Info("a\u009b2J\x7f", "b", "c\n\x1b\x7f\u009b\u202e", "d", errors.New("\u009b"))
		if line := strings.TrimSuffix(out.String(), "\n"); line == "" || redact.Visible(line) != line {
			t.Errorf("%s: %q", format, out.String())
		}
	}
}

// stuckWriter is an output that nobody reads.
type stuckWriter struct{ context.Context }

func (w stuckWriter) Write([]byte) (int, error) {
	<-w.Done()
	return 0, w.Err()
}

// TestStuckExit: a server that fails ends, even if nobody reads its log.
func TestStuckExit(t *testing.T) {
	t.Parallel()
	stuck, release := context.WithCancel(t.Context())
	defer release()
	args := newPlace(t).args("run-server", "--tls-certificate=/nonexistent/x", "--tls-key=/nonexistent/x", "--tls-port=0")
	ended := make(chan int, 1)
	go func() { ended <- run(t.Context(), args, nil, io.Discard, stuckWriter{stuck}) }()
	select {
	case status := <-ended:
		if status != int(statusFailed) {
			t.Errorf("status %d", status)
		}
	case <-time.After(patience):
		t.Error("it waits for its output")
	}
}
