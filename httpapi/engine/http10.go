package engine

import (
	"bytes"
	"io"
	"net"

	"github.com/valyala/fasthttp"
)

// SendUntilClose sends a body of unknown length to a client of HTTP/1.0, which
// can't read chunks (RFC 9112, section 6.1): the end of the connection ends the
// body. The engine would send chunks, so the connection is taken from it.
func SendUntilClose(ctx *fasthttp.RequestCtx) {
	response := &ctx.Response
	if !response.IsBodyStream() || response.Header.ContentLength() >= 0 {
		return
	}
	response.Header.Del("Transfer-Encoding")
	response.Header.SetConnectionClose()
	head := bytes.Clone(response.Header.Header())
	// Request and response are valid until the function returns.
	body := response.BodyStream()
	if ctx.IsHead() {
		body = bytes.NewReader(nil)
	}
	ctx.HijackSetNoResponse(true)
	ctx.Hijack(func(conn net.Conn) {
		_, err := conn.Write(head)
		if err == nil {
			_, err = io.Copy(conn, body)
		}
		if err != nil {
			reset(ctx.Conn())
		}
		_ = response.CloseBodyStream() // before the connection, for which a server that stops waits
	})
}

// reset makes the next Close tell the client that its answer is not complete. A
// connection that ends in the usual way would say that it is.
func reset(conn net.Conn) {
	if c, ok := conn.(*connection); ok {
		conn = c.Conn
	}
	if tcp, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0) // the client is gone otherwise
	}
}
