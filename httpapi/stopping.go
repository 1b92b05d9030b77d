package httpapi

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"time"
)

// quietTime is how long a client must have sent nothing before its connection is
// closed when the server stops. The client of Guix writes up to 1,000 requests in one
// burst, which takes several round trips to arrive, and sends those that are left again
// on a new connection where one is closed within the burst.
const quietTime = 300 * time.Millisecond

// stopServing closes connections after their listeners. At first, requests are answered
// as always, and a connection is closed only after quietTime without a request. In the last quarter of the grace, stopping is called, and
// each answer is the last of its connection. Then the connections that are left are
// closed, cut is called, and half of the grace is left for their handlers to end.
func stopServing(connections *connections, grace time.Duration, stopping, cut func(), log *slog.Logger) {
	connections.drain(time.Now().Add(grace - grace/4))
	stopping()
	connections.wait(time.Now().Add(grace / 8))
	connections.endAll()
	connections.wait(time.Now().Add(grace / 8))
	if connections.count() == 0 {
		return
	}
	log.Info("cutting connections whose answers are not done", "connections", connections.count())
	connections.closeAll()
	cut()
	connections.wait(time.Now().Add(grace / 2))
}

// drain closes each connection once its client has sent nothing for quietTime, until
// none is left or the time is over.
func (c *connections) drain(end time.Time) {
	c.draining.Store(true)
	c.mu.Lock()
	for connection := range c.open.members {
		connection.endWhenQuiet()
	}
	c.mu.Unlock()
	c.wait(end)
}

// endAll closes connections that wait for a request, and the others when they do.
func (c *connections) endAll() {
	c.ending.Store(true)
	c.mu.Lock()
	defer c.mu.Unlock()
	for connection := range c.open.members {
		_ = connection.Conn.SetReadDeadline(time.Now()) // Read fails as well, then
	}
}

// wait waits for all connections to be closed.
func (c *connections) wait(end time.Time) {
	for c.count() > 0 && time.Now().Before(end) {
		time.Sleep(5 * time.Millisecond)
	}
}

// endWhenQuiet makes a Read of the connection fail that gets nothing for quietTime.
func (c *connection) endWhenQuiet() {
	_ = c.Conn.SetReadDeadline(time.Now().Add(c.connections.quietTime)) // Read fails as well, then
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
	if err != nil && c.connections.draining.Load() && errors.Is(err, os.ErrDeadlineExceeded) {
		err = net.ErrClosed
	}
	return n, err
}
