package nars

import (
	"context"

	"nar-herder/internal/pace"
)

// line is what flights that no client waits for may take of it, all together.
type line struct{ pace.Limiter }

// took notes bytes. Those that a client waits for are free.
func (l *line) took(n int, free bool) {
	if !free {
		l.Consume(n)
	}
}

// wait waits for the flight's turn, or until a client waits for it.
func (l *line) wait(ctx context.Context, fl *flight) error {
	pause := l.Pause()
	if pause <= 0 {
		return nil
	}
	timed, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	// An error is the end of the pause, or of all.
	_ = fl.mu.Wait(timed, func() bool { return fl.readers > 0 })
	return ctx.Err()
}
