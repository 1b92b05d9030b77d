package check

import (
	"context"
	"io"
	"time"
)

// throttle lets bytes be read at a rate, by all its readers together.
type throttle struct {
	rate  int64 // in bytes a second; no limit when not positive
	begun time.Time
	done  int64
}

// reader reads at the rate.
func (t *throttle) reader(ctx context.Context, r io.Reader) io.Reader {
	if t.rate <= 0 {
		return r
	}
	return &throttled{ctx, t, r}
}

type throttled struct {
	ctx context.Context
	*throttle
	r io.Reader
}

func (t *throttled) Read(p []byte) (int, error) {
	// No more than a second's worth, so that the pauses stay short.
	n, err := t.r.Read(p[:min(int64(len(p)), t.rate)])
	now := time.Now()
	if t.done == 0 {
		t.begun = now
	}
	t.done += int64(n)
	due := t.begun.Add(time.Duration(float64(t.done) / float64(t.rate) * float64(time.Second)))
	if due.Before(now.Add(-time.Second)) {
		// What was slow for other reasons is not made up for later.
		t.begun, t.done = now, int64(n)
		due = now
	}
	pause := time.NewTimer(due.Sub(now))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-t.ctx.Done():
		return n, t.ctx.Err()
	}
	return n, err
}
