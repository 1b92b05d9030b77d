// Package pace makes a caller wait: for a time, longer after each failure, or as a rate
// limit asks for.
package pace

import (
	"context"
	"io"
	"math/rand/v2"
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

// Backoff is how long to wait before another attempt: First after one failure, twice as
// long after each more in a row, and never longer than Last. Both are positive, and First
// is at most an hour.
type Backoff struct{ First, Last time.Duration }

// After returns the pause after a number of failures in a row.
func (b Backoff) After(failures int) time.Duration {
	return min(b.Last, b.First<<min(max(failures-1, 0), 20))
}

// Jittered is After, and half as much more or less at random, so that callers that failed
// together don't try again together.
func (b Backoff) Jittered(failures int) time.Duration { return Jitter(b.After(failures)) }

// Jitter returns a random duration between half of d, which is positive, and one and a half.
func Jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

// Limiter keeps what all who share it read below a rate. Its methods may be called from
// several goroutines at once.
type Limiter struct {
	// Rate is in bytes a second; not positive for no limit. It does not change.
	Rate int64

	mu  sync.Mutex
	due time.Time // when the bytes consumed so far are paid for
}

// Bound shortens a buffer to what may be read at a time: a tenth of a second's worth, so
// that the pauses stay short.
func (l *Limiter) Bound(buffer []byte) []byte {
	if l.Rate <= 0 {
		return buffer
	}
	return buffer[:min(int64(len(buffer)), max(l.Rate/10, 1))]
}

// maxLag is how far readers that are slower than the rate may catch up later. After a longer
// rest they don't run faster.
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

// Pause returns how long to wait before the next read; not positive for no time.
func (l *Limiter) Pause() time.Duration {
	if l.Rate <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.Until(l.due)
}

// Reader returns a reader of r that waits as the limit asks for, until the context ends.
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
