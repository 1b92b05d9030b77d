package engine

import (
	"bytes"
	"io"
	"net"

	"github.com/valyala/fasthttp"
)

// SendUntilClose sends a body of unknown length to a client of HTTP/1.0, which can't read
// chunks (RFC 9112, section 6.1): closing the connection ends the body. It hijacks the
// connection, as fasthttp would send chunks.
func SendUntilClose(ctx *fasthttp.RequestCtx) {
	response := &ctx.Response
	if !response.IsBodyStream() || response.Header.ContentLength() >= 0 {
		return
	}
	response.Header.Del("Transfer-Encoding")
	response.Header.SetConnectionClose()
	head := bytes.Clone(response.Header.Header())
	// Request and response stay valid until the hijack handler returns.
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
		_ = response.CloseBodyStream() // before the connection, as Stop waits only for that
	})
}

// reset makes the next Close reset the connection, so that the client knows that its answer
// is incomplete.
func reset(conn net.Conn) {
	if c, ok := conn.(*connection); ok {
		conn = c.Conn
	}
	if tcp, ok := conn.(interface{ SetLinger(seconds int) error }); ok {
		_ = tcp.SetLinger(0) // fails if the client is gone
	}
}
