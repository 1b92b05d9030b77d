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

// logger writes lines, and gathers those of single requests, of which there
// can be a hundred thousand a second, into larger writes. Anything of level INFO
// or above is written at once.
type logger struct {
	slog.Handler
	out *lineBuffer
}

// newLogger starts a log. end writes what is gathered.
func newLogger(w io.Writer, level slog.Level) (log *slog.Logger, end func()) {
	out := &lineBuffer{w: bufio.NewWriterSize(w, 64<<10), done: make(chan struct{})}
	if level < slog.LevelInfo {
		go out.flushNowAndThen()
	}
	handler := newLogHandler(out, level)
	return slog.New(logger{handler, out}), sync.OnceFunc(func() {
		out.flush()
		out.mu.Lock()
		defer out.mu.Unlock()
		out.w = bufio.NewWriterSize(w, 1) // what comes later goes through
		close(out.done)
	})
}

// newLogHandler writes lines and redacts the secrets of URLs in all values: some come
// from libraries and other machines.
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

// flush writes what is gathered. A log that can't be written has nowhere to
// complain to.
func (b *lineBuffer) flush() {
	b.mu.Lock()
	defer b.mu.Unlock()
	_ = b.w.Flush()
}

func (b *lineBuffer) flushNowAndThen() {
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
