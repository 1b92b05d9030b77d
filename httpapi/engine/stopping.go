package engine

import (
	"errors"
	"net"
	"os"
	"time"
)

// quietTime is how long a client must have sent nothing before its connection is
// closed when the server stops. The client of Guix writes up to 1,000 requests in one
// burst, which takes several round trips to arrive, and sends those that are left again
// on a new connection where one is closed within the burst.
const quietTime = 300 * time.Millisecond

// Stop closes the connections, after the listeners were closed. First, requests are answered
// as always, and a connection is closed after QuietTime without a request. In the last quarter
// of Grace, it calls stopping, and each answer must be the last of its connection. Then it
// closes the connections that are left, calls cut, and gives handlers half of Grace to end.
func (e *Engine) Stop(stopping, cut func()) {
	e.drain(time.Now().Add(e.Grace - e.Grace/4))
	stopping()
	e.wait(time.Now().Add(e.Grace / 8))
	e.endAll()
	e.wait(time.Now().Add(e.Grace / 8))
	if e.count() == 0 {
		return
	}
	e.log.Info("cutting connections whose answers are not done", "connections", e.count())
	e.closeAll()
	cut()
	e.wait(time.Now().Add(e.Grace / 2))
}

// drain closes each connection once its client has sent nothing for quietTime, until
// none is left or the time is over.
func (e *Engine) drain(end time.Time) {
	e.draining.Store(true)
	e.mu.Lock()
	for connection := range e.open.members {
		connection.endWhenQuiet()
	}
	e.mu.Unlock()
	e.wait(end)
}

// endAll closes connections that wait for a request, and the others when they do.
func (e *Engine) endAll() {
	e.ending.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	for connection := range e.open.members {
		_ = connection.Conn.SetReadDeadline(time.Now()) // Read fails as well, then
	}
}

// wait waits for all connections to be closed.
func (e *Engine) wait(end time.Time) {
	for e.count() > 0 && time.Now().Before(end) {
		time.Sleep(5 * time.Millisecond)
	}
}

// endWhenQuiet makes a Read of the connection fail that gets nothing for quietTime.
func (c *connection) endWhenQuiet() {
	_ = c.Conn.SetReadDeadline(time.Now().Add(c.engine.QuietTime)) // Read fails as well, then
}

// Read implements [net.Conn]. The end of a connection that the server closes has the
// error that the engine gives no answer to, such as 408: a client could take that for
// the answer to its next request.
func (c *connection) Read(p []byte) (int, error) {
	if c.failure != nil {
		return 0, c.failure
	}
	n, err := c.read(p)
	if isFirst := !c.begun; n > 0 {
		c.begun = true
		if endsBare(p[:n]) {
			n = c.readBare(p, n, isFirst)
		}
	}
	if err != nil && c.engine.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		err = net.ErrClosed
	}
	return n, err
}
