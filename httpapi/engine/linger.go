package engine

import (
	"time"

	"github.com/valyala/fasthttp"
)

// lingerTime bounds how long linger waits.
const lingerTime = 2 * time.Second

// CloseAfter closes the connection after the answer. The client may still be sending a body
// or further requests, which are dropped.
func CloseAfter(ctx *fasthttp.RequestCtx) {
	ctx.SetConnectionClose()
	if c, ok := ctx.Conn().(*connection); ok {
		c.lingers = true
	}
}

// linger closes this side of the connection, and drops what the client sends until it has
// closed its side as well. Closing a connection with unread bytes would reset it, and the client
// might lose the answer (RFC 9112, section 9.6).
func (c *connection) linger() {
	half, ok := c.Conn.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.ahead, c.sealed, c.held = nil, nil, nil
	while := lingerTime
	if c.engine.draining.Load() {
		while = c.engine.QuietTime
	}
	if c.Conn.SetReadDeadline(time.Now().Add(while)) != nil || c.engine.ending.Load() {
		return // endAll sets the deadline
	}
	dropped := make([]byte, 4<<10)
	for err := error(nil); err == nil; {
		_, err = c.Conn.Read(dropped)
	}
}
