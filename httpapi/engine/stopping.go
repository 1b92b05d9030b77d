package engine

import (
	"errors"
	"net"
	"os"
	"time"

	"nar-herder/httpapi/engine/admission"
)

// quietTime is how long a client must have sent nothing before its connection is
// closed when the server stops. The client of Guix writes up to 1,000 requests in one
// burst, which takes several round trips to arrive. If the connection is closed within the
// burst, it repeats the rest on a new one.
const quietTime = 300 * time.Millisecond

// Stop closes the connections, after the listeners were closed. First, requests are answered
// as usual, and a connection is closed after QuietTime without a request. In the last quarter
// of Grace, Stop calls stopping, from when on each connection must be closed after its answer.
// Then it closes the remaining connections, calls cut, and gives handlers half of Grace to end.
func (e *Engine) Stop(stopping, cut func()) {
	e.drain(time.Now().Add(e.Grace - e.Grace/4))
	stopping()
	e.wait(time.Now().Add(e.Grace / 8))
	e.endAll()
	e.wait(time.Now().Add(e.Grace / 8))
	if e.open.Count() == 0 {
		return
	}
	e.log.Info("cutting connections with unfinished answers", "connections", e.open.Count())
	e.open.Each(admission.Conn.Cut)
	cut()
	e.wait(time.Now().Add(e.Grace / 2))
}

// drain closes each connection once its client has sent nothing for QuietTime, until
// none is left or the end is reached.
func (e *Engine) drain(end time.Time) {
	e.draining.Store(true)
	e.open.Drain()
	e.open.Each(func(c admission.Conn) { c.(*connection).endWhenQuiet() })
	e.wait(end)
}

// endAll closes connections that wait for a request, and others once they wait.
func (e *Engine) endAll() {
	e.ending.Store(true)
	e.open.Each(func(c admission.Conn) {
		_ = c.(*connection).Conn.SetReadDeadline(time.Now()) // fails only if closed
	})
}

// wait waits for all connections to be closed.
func (e *Engine) wait(end time.Time) {
	for e.open.Count() > 0 && time.Now().Before(end) {
		time.Sleep(5 * time.Millisecond)
	}
}

// endWhenQuiet makes Read fail after QuietTime without bytes.
func (c *connection) endWhenQuiet() {
	_ = c.Conn.SetReadDeadline(time.Now().Add(c.engine.QuietTime)) // fails only if closed
}

// Read implements [net.Conn]. While the server stops, a timeout becomes net.ErrClosed, which
// fasthttp doesn't answer: a client could take a 408 for the answer to its next request.
func (c *connection) Read(p []byte) (int, error) {
	if c.failure != nil {
		return 0, c.failure
	}
	c.answers.Settle() // fasthttp flushes its buffer before it reads
	n, err := c.next(p)
	if isFirst := c.begun.IsZero(); n > 0 {
		if isFirst {
			c.begun = time.Now()
		}
		if isFirst && p[0] == handshakeRecord {
			c.failure = errTLS
			return 0, errTLS
		}
		if endsBare(p[:n]) {
			n = c.readBare(p, n, isFirst)
		}
	}
	if err != nil && c.engine.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		err = net.ErrClosed
	}
	return n, err
}
