// Package pace provides interruptible sleeps, back-off and rate limits.
package pace

import (
	"context"
	"io"
	"math/rand/v2"
	"sync"
	"time"
)

// Sleep waits for the duration or until the context ends, and returns the context's error.
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

// Backoff is an exponential back-off: First after one failure, doubled for each further
// failure in a row, and at most Last. Both are positive, and First is at most an hour.
type Backoff struct{ First, Last time.Duration }

// After returns the pause after a number of failures in a row.
func (b Backoff) After(failures int) time.Duration {
	return min(b.Last, b.First<<min(max(failures-1, 0), 20))
}

// Jittered is After with Jitter, so that callers that failed together don't retry together.
func (b Backoff) Jittered(failures int) time.Duration { return Jitter(b.After(failures)) }

// Jitter returns a random duration between 0.5 d and 1.5 d. d must be positive.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// Limiter limits the common rate of all its readers. Its methods may be called concurrently.
type Limiter struct {
	// Rate is in bytes a second; not positive for no limit. It does not change.
	Rate int64

	mu  sync.Mutex
	due time.Time // of the next read
}

// Bound shortens a buffer to the bytes of a tenth of a second, so that the pauses are short.
func (l *Limiter) Bound(buffer []byte) []byte {
	if l.Rate <= 0 {
		return buffer
	}
	return buffer[:min(int64(len(buffer)), max(l.Rate/10, 1))]
}

// maxLag is how much unused time accumulates: readers that were slower than the rate for less
// than this catch up. After a longer rest they don't run faster.
const maxLag = time.Second

// Consume records n bytes and returns how long to wait before the next read; not positive for
// no time.
func (l *Limiter) Consume(n int) time.Duration {
	if l.Rate <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if now.Sub(l.due) > maxLag {
		l.due = now
	}
	l.due = l.due.Add(time.Duration(float64(n) / float64(l.Rate) * float64(time.Second)))
	return l.due.Sub(now)
}

// Pause returns how long to wait before the next read. It may be negative.
func (l *Limiter) Pause() time.Duration {
	if l.Rate <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.due)
}

// Reader returns a reader of r within the limit, until the context ends.
func (l *Limiter) Reader(ctx context.Context, r io.Reader) io.Reader {
	if l.Rate <= 0 {
		return r
	}
	return limited{ctx, l, r}
}

type limited struct {
	ctx     context.Context
	limiter *Limiter
	from    io.Reader
}

func (r limited) Read(p []byte) (int, error) {
	n, err := r.from.Read(r.limiter.Bound(p))
	if pause := r.limiter.Consume(n); pause > 0 && (err == nil || err == io.EOF) {
		if ended := Sleep(r.ctx, pause); ended != nil {
			err = ended
		}
	}
	return n, err
}
