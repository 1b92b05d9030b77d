package engine

import (
	"time"

	"github.com/valyala/fasthttp"
)

// lingerTime bounds for how long bytes of a client are read and dropped before its
// connection is closed.
const lingerTime = 2 * time.Second

// CloseAfter closes the connection after the answer. Its client may be sending a body or
// further requests, which are not read.
func CloseAfter(ctx *fasthttp.RequestCtx) {
	ctx.SetConnectionClose()
	if c, ok := ctx.Conn().(*connection); ok {
		c.lingers = true
	}
}

// linger waits until the client has ended its side as well. To close a connection on which
// bytes arrive that nobody reads resets it, and the client may lose the answer (RFC 9112,
// section 9.6).
func (c *connection) linger() {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.ahead, c.held = nil, nil
	while := lingerTime
	if c.engine.draining.Load() {
		while = c.engine.QuietTime
	}
	if c.Conn.SetReadDeadline(time.Now().Add(while)) != nil || c.engine.ending.Load() {
		return // endAll has set the deadline before, or will
	}
	dropped := make([]byte, 4<<10)
	for err := error(nil); err == nil; {
		_, err = c.Conn.Read(dropped)
	}
}
