package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"nar-herder/internal/redact"
)

// logger buffers the lines of single requests, since there may be a hundred thousand a second.
// It writes lines of level INFO and above at once.
type logger struct {
	slog.Handler
	out *lineBuffer
}

// newLogger returns a log. end flushes it, and later lines are not buffered.
func newLogger(w io.Writer, level slog.Level) (log *slog.Logger, end func()) {
	out := &lineBuffer{w: bufio.NewWriterSize(w, 64<<10), done: make(chan struct{})}
	if level < slog.LevelInfo {
		go out.flushPeriodically()
	}
	handler := newLogHandler(out, level)
	return slog.New(logger{handler, out}), sync.OnceFunc(func() {
		out.flush()
		out.mu.Lock()
		defer out.mu.Unlock()
		out.w = bufio.NewWriterSize(w, 1)
		close(out.done)
	})
}

// newLogHandler returns a handler that redacts the secrets of URLs in all values, since some
// values come from libraries and other machines.
func newLogHandler(w io.Writer, level slog.Level) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level, ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		switch a.Value.Kind() {
		case slog.KindString:
			a.Value = slog.StringValue(redact.Text(a.Value.String()))
		case slog.KindAny:
			if _, ok := a.Value.Any().(slog.Level); !ok {
				a.Value = slog.StringValue(redact.Text(fmt.Sprintf("%+v", a.Value.Any())))
			}
		}
		return a
	}})
}

func (l logger) Handle(ctx context.Context, record slog.Record) error {
	err := l.Handler.Handle(ctx, record)
	if record.Level >= slog.LevelInfo {
		l.out.flush()
	}
	return err
}

func (l logger) WithAttrs(attrs []slog.Attr) slog.Handler {
	return logger{l.Handler.WithAttrs(attrs), l.out}
}

func (l logger) WithGroup(name string) slog.Handler {
	return logger{l.Handler.WithGroup(name), l.out}
}

type lineBuffer struct {
	mu   sync.Mutex
	w    *bufio.Writer
	done chan struct{}
}

func (b *lineBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.w.Write(p)
}

// flush writes the buffer. There is nowhere to report an error of the log itself.
func (b *lineBuffer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.w.Flush()
}

func (b *lineBuffer) flushPeriodically() {
	ticker := time.NewTicker(200 * time.Millisecond)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			b.flush()
		case <-b.done:
			return
		}
	}
}
