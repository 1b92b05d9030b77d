package copying

import (
	"context"
	"io"
	"sync"
	"time"
)

// pace keeps what all readers together take below a rate.
type pace struct {
	rate int64 // in bytes a second; no limit when not positive

	mu  sync.Mutex
	due time.Time // when what was taken so far has been paid for
}

// bound is as much of the buffer as is taken at a time: a tenth of a second's
// worth, so that the pauses stay short.
func (p *pace) bound(buffer []byte) []byte {
	if p.rate <= 0 {
		return buffer
	}
	return buffer[:min(int64(len(buffer)), max(p.rate/10, 1))]
}

// took notes bytes, and waits until they are paid for.
func (p *pace) took(ctx context.Context, n int) error {
	if p.rate <= 0 || n == 0 {
		return nil
	}
	p.mu.Lock()
	// What was slow for other reasons is not made up for.
	now := time.Now()
	if p.due.Before(now) {
		p.due = now
	}
	p.due = p.due.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	pause := p.due.Sub(now)
	p.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reader reads a file of the source at the pace, and ends with the context. It
// hides how a store might read it by itself, past all this.
type reader struct {
	ctx  context.Context
	run  *run
	from io.Reader
	err  error // that reading has failed with: the target would make it its own
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		r.err = err
		return 0, err
	}
	n, err := r.from.Read(r.run.pace.bound(p))
	if r.run.Moved != nil && n > 0 {
		r.run.Moved(int64(n))
	}
	if waitErr := r.run.pace.took(r.ctx, n); waitErr != nil && (err == nil || err == io.EOF) {
		err = waitErr
	}
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}
