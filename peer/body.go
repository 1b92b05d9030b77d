package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"
)

// minimumRate is the rate in bytes per second below which a body is given up, averaged over
// each timeout spent waiting for it: a seventh of a modem's 56 kbit/s. A slower one would
// keep its connection for days. The next attempt resumes the nar.
const minimumRate = 1 << 10

// ErrSlow reports a body that came more slowly than [minimumRate].
var ErrSlow = errors.New("it comes too slowly")

// Body is the body of an answer. Reading it fails if it comes too slowly, or ends before its
// length, which HTTP does not always notice.
type Body struct {
	body    io.ReadCloser
	cancel  context.CancelCauseFunc
	timeout time.Duration
	timer   *time.Timer
	left    int64 // to come; negative if unknown
	fileSum [16]byte
	// failed is called with the first failure, after waiting for it for some time; it may be
	// nil.
	failed func(waited time.Duration, err error)
	// least is how many bytes must come in each timeout. Of those, come have come after
	// waiting for waited.
	least, come int64
	waited      time.Duration
}

// Watch returns a body that comes from the peer. It cancels the request if the body comes too
// slowly. want is its length; negative if unknown.
func (p *Peer) Watch(body io.ReadCloser, want int64, cancel context.CancelCauseFunc) *Body {
	return newBody(body, want, p.self.ProgressTimeout, cancel, p.name)
}

func newBody(from io.ReadCloser, want int64, timeout time.Duration, cancel context.CancelCauseFunc, name string) *Body {
	b := &Body{body: from, cancel: cancel, timeout: timeout, left: want}
	b.least = max(1, int64(minimumRate*timeout.Seconds()))
	b.timer = time.AfterFunc(timeout, func() {
		err := ErrSlow
		if b.least == 1 {
			err = ErrSilent
		}
		cancel(fmt.Errorf("%w from %s: not %d bytes in %s", err, name, b.least, timeout))
	})
	b.timer.Stop()
	return b
}

// Read implements [io.Reader].
func (b *Body) Read(p []byte) (int, error) {
	// The time between two reads doesn't count: a client may be slow.
	b.timer.Reset(b.timeout - b.waited)
	begun := time.Now()
	n, err := b.body.Read(p)
	b.timer.Stop()
	b.waited += time.Since(begun)
	if b.come += int64(n); b.come >= b.least {
		b.come, b.waited = 0, 0
	}
	if b.left >= 0 {
		if b.left -= int64(n); err == io.EOF && b.left > 0 {
			err = io.ErrUnexpectedEOF
		}
		b.left = max(b.left, 0)
	}
	if err != nil && err != io.EOF && b.failed != nil {
		b.failed(b.waited, err)
		b.failed = nil
	}
	return n, err
}

// Close implements [io.Closer].
func (b *Body) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.body.Close()
}
