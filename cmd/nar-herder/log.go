package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"

	"nar-herder/internal/logwriter"
	"nar-herder/internal/redact"
)

// logger passes lines to a writer that gathers them, since there may be a hundred thousand
// requests a second. It waits for lines of level INFO and above.
type logger struct {
	slog.Handler
	out *logwriter.Writer
}

// newLogger returns a log in text or JSON, and its writer, which must be closed. Later lines are
// written at once.
func newLogger(w io.Writer, level slog.Level, format string) (*slog.Logger, *logwriter.Writer) {
	out := logwriter.New(w)
	handler := newHandler(out, level, format, isJournal(w))
	log := slog.New(logger{handler, out})
	out.Over = func(dropped int64) {
		log.Warn("lines of this log were dropped, because its output did not take them", "dropped", dropped)
	}
	return log, out
}

// newLogHandler returns the handler of a command that logs little.
func newLogHandler(w io.Writer, level slog.Level) slog.Handler {
	return newHandler(w, level, "text", isJournal(w))
}

// newHandler returns a handler that redacts the secrets of URLs in all values, since some
// values come from libraries and other machines.
func newHandler(w io.Writer, level slog.Level, format string, untimed bool) slog.Handler {
	options := &slog.HandlerOptions{Level: level, ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		switch a.Value.Kind() {
		case slog.KindTime:
			if untimed && len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
		case slog.KindString:
			a.Value = slog.StringValue(redact.Text(a.Value.String()))
		case slog.KindDuration:
			a.Value = slog.StringValue(a.Value.String()) // JSON would have nanoseconds
		case slog.KindAny:
			if _, ok := a.Value.Any().(slog.Level); !ok {
				text := strings.ReplaceAll(fmt.Sprintf("%+v", a.Value.Any()), "\n", "; ") // joined errors
				a.Value = slog.StringValue(redact.Text(text))
			}
		}
		return a
	}}
	if format == "json" {
		return slog.NewJSONHandler(redact.JSON{W: w}, options)
	}
	return slog.NewTextHandler(w, options)
}

func (l logger) Handle(ctx context.Context, record slog.Record) error {
	err := l.Handler.Handle(ctx, record)
	if record.Level >= slog.LevelInfo {
		l.out.Flush()
	}
	return err
}

func (l logger) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logger{l.Handler.WithAttrs(attrs), l.out}
}

func (l logger) WithGroup(name string) slog.Handler {
	return logger{l.Handler.WithGroup(name), l.out}
}

// journalWriter writes to the journal of systemd, which takes the priority of a line from its
// beginning, see sd-daemon(3), and adds the time.
type journalWriter struct{ io.Writer }

// errorOutput returns standard error, with priorities if that is the journal.
func errorOutput() io.Writer {
	if is, err := journal.StderrIsJournalStream(); err == nil && is {
		return journalWriter{os.Stderr}
	}
	return os.Stderr
}

func isJournal(w io.Writer) bool {
	_, is := w.(journalWriter)
	return is
}

// priorities are the priorities of lines that begin so. Others have that of the unit, which is 6
// by default.
var priorities = []struct{ begin, priority string }{
	{"level=DEBUG ", "<7>"}, {"level=INFO ", "<6>"}, {"level=WARN ", "<4>"}, {"level=ERROR ", "<3>"},
	{`{"level":"DEBUG",`, "<7>"}, {`{"level":"INFO",`, "<6>"}, {`{"level":"WARN",`, "<4>"}, {`{"level":"ERROR",`, "<3>"},
	{"nar-herder: warning: ", "<4>"}, {"nar-herder: ", "<3>"},
}

// Write implements [io.Writer] for whole lines.
func (j journalWriter) Write(p []byte) (int, error) {
	var all []byte
	for line := range bytes.Lines(p) {
		for _, of := range priorities {
			if bytes.HasPrefix(line, []byte(of.begin)) {
				all = append(all, of.priority...)
				break
			}
		}
		all = append(all, line...)
	}
	if _, err := j.Writer.Write(all); err != nil {
		return 0, err
	}
	return len(p), nil
}
