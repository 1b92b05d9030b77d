// Package recentlog keeps the newest records of a log in memory.
package recentlog

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"nar-herder/internal/redact"
)

// Event is a record of the log.
type Event struct {
	At      time.Time
	Level   slog.Level
	Message string
	// Attributes are its attributes as key=value, without secrets.
	Attributes string
}

// IsWarning reports whether the event is a warning or an error.
func (e Event) IsWarning() bool { return e.Level >= slog.LevelWarn }

// maxText bounds the length of the texts of an event.
const maxText = 1000

// Log keeps events. It is a [slog.Handler]. Use [New] to make one.
type Log struct {
	ring  *ring
	attrs string
	group string
}

type ring struct {
	mu     sync.Mutex
	events []Event
	next   int
	size   int
}

// New makes a log of the newest n records of level INFO and above.
func New(n int) *Log { return &Log{ring: &ring{events: make([]Event, n)}} }

// Events returns the events, the newest first.
func (l *Log) Events() []Event {
	r := l.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	events := make([]Event, 0, r.size)
	for i := range r.size {
		events = append(events, r.events[(r.next-1-i+2*len(r.events))%len(r.events)])
	}
	return events
}

// Enabled implements [slog.Handler].
func (l *Log) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

// Handle implements [slog.Handler].
func (l *Log) Handle(_ context.Context, record slog.Record) error {
	var attrs strings.Builder
	attrs.WriteString(l.attrs)
	record.Attrs(func(a slog.Attr) bool {
		write(&attrs, l.group, a)
		return true
	})
	event := Event{record.Time, record.Level, cut(redact.Text(record.Message)), cut(strings.TrimSpace(attrs.String()))}
	r := l.ring
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events[r.next] = event
	r.next = (r.next + 1) % len(r.events)
	r.size = min(r.size+1, len(r.events))
	return nil
}

// write appends an attribute.
func write(to *strings.Builder, group string, a slog.Attr) {
	value := a.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if a.Key != "" {
			group += a.Key + "."
		}
		for _, inner := range value.Group() {
			write(to, group, inner)
		}
		return
	}
	fmt.Fprintf(to, " %s%s=%s", group, a.Key, redact.Text(value.String()))
}

func cut(text string) string {
	if len(text) > maxText {
		return strings.ToValidUTF8(text[:maxText], "") + "…"
	}
	return text
}

// WithAttrs implements [slog.Handler].
func (l *Log) WithAttrs(attrs []slog.Attr) slog.Handler {
	var text strings.Builder
	text.WriteString(l.attrs)
	for _, a := range attrs {
		write(&text, l.group, a)
	}
	return &Log{l.ring, text.String(), l.group}
}

// WithGroup implements [slog.Handler].
func (l *Log) WithGroup(name string) slog.Handler {
	if name == "" {
		return l
	}
	return &Log{l.ring, l.attrs, l.group + name + "."}
}
