// Package pace waits: for a time, or as long as a rate asks for.
package pace

import (
	"context"
	"sync"
	"time"
)

// Sleep waits, unless the context ends before: then the error is the context's.
func Sleep(ctx context.Context, duration time.Duration) error {
	if duration <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(duration)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Pace keeps what all who use it together take below a rate. Its methods may be called
// from several goroutines at once.
type Pace struct {
	// Rate is in bytes a second; no limit when not positive. It does not change.
	Rate int64

	mu  sync.Mutex
	due time.Time // when what was taken so far has been paid for
}

// Bound is as much of the buffer as is taken at a time: a tenth of a second's worth,
// so that the pauses stay short.
func (p *Pace) Bound(buffer []byte) []byte {
	if p.Rate <= 0 {
		return buffer
	}
	return buffer[:min(int64(len(buffer)), max(p.Rate/10, 1))]
}

// Took notes so many bytes, and returns for how long nothing more is to be taken.
func (p *Pace) Took(n int) time.Duration {
	if p.Rate <= 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	// What was slow for other reasons is not made up for.
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.Rate) * float64(time.Second)))
	return p.due.Sub(now)
}

// Pause is for how long nothing more is to be taken now; not positive for no time.
func (p *Pace) Pause() time.Duration {
	if p.Rate <= 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return time.Until(p.due)
}
