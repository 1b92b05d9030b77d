package nars

import (
	"context"
	"sync"
	"time"
)

// pace keeps what all flights that no client waits for take of the line below a
// rate.
type pace struct {
	rate int64 // in bytes a second; no limit when not positive

	mu  sync.Mutex
	due time.Time // when what was taken so far has been paid for
}

// bound is as much of the buffer as is taken at a time: a tenth of a second's
// worth, so that the line is used evenly.
func (p *pace) bound(buffer []byte) []byte {
	if p.rate <= 0 {
		return buffer
	}
	return buffer[:min(int64(len(buffer)), max(p.rate/10, 1))]
}

// took notes bytes. Those that a client waits for are free.
func (p *pace) took(n int, free bool) {
	if p.rate <= 0 || free {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// What was slow for other reasons is not made up for.
	if now := time.Now(); p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
}

// wait waits for the flight's turn, or until a client waits for it.
func (p *pace) wait(ctx context.Context, fl *flight) error {
	if p.rate <= 0 {
		return nil
	}
	p.mu.Lock()
	pause := time.Until(p.due)
	p.mu.Unlock()
	if pause <= 0 {
		return nil
	}
	timed, cancel := context.WithTimeout(ctx, pause)
	defer cancel()
	// An error is the end of the pause, or of all.
	_ = fl.wait(timed, func() bool { return fl.readers > 0 })
	return ctx.Err()
}
