package nars

import (
	"context"

	"nar-herder/internal/pace"
)

// line is what downloads that no client waits for may take of it, all together.
type line struct{ pace.Limiter }

// took notes bytes. Those that a client waits for are free.
func (l *line) took(n int, free bool) {
	if !free {
		l.Consume(n)
	}
}

// wait waits for the download's turn, or until a client waits for it.
func (l *line) wait(ctx context.Context, d *download) error {
	pause := l.Pause()
	if pause <= 0 {
		return nil
	}
	timed, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	// An error is the end of the pause, or of all.
	_ = d.mu.Wait(timed, func() bool { return d.readers > 0 })
	return ctx.Err()
}
