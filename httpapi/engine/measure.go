package engine

import (
	"io"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/measured"
)

// Measure passes the answer to the sink once it is written. Call it at the end of a handler, at
// most once. request is nil unless requests are logged.
func Measure(ctx *fasthttp.RequestCtx, sink measured.Sink, route int, hit bool, request *measured.Request) {
	answers := pendingOf(ctx)
	kind := measured.Kind{Route: uint16(route), Status: uint16(ctx.Response.StatusCode()), Hit: hit}
	var length int64
	var open bool
	switch {
	case ctx.IsGet():
	case ctx.IsHead():
		kind.Method = measured.HEAD
	default:
		kind.Method = measured.OtherMethod
	}
	switch {
	case kind.Method == measured.HEAD, ctx.Response.SkipBody:
	case ctx.Response.IsBodyStream():
		open = true
	default:
		length = int64(len(ctx.Response.Body()))
	}
	if request != nil || open || !answers.Combine(kind, length) {
		answers.Add(sink, kind, request, Begun(ctx), length, open)
	}
}

// Describe returns what an access log needs of the request.
func Describe(ctx *fasthttp.RequestCtx, proxies clients.Proxies) *measured.Request {
	header := &ctx.Request.Header
	client := "unix:" // as nginx
	if address := proxies.Client(ctx); address.IsValid() {
		client = address.String()
	}
	return &measured.Request{
		Time: Begun(ctx), Client: client, Method: string(header.Method()), Target: string(header.RequestURI()),
		Protocol: string(header.Protocol()), Host: string(header.Host()), Range: string(header.Peek(fasthttp.HeaderRange)),
		Referer: string(header.Referer()), UserAgent: string(header.UserAgent()),
		Peer: proxies.ClientName(ctx),
	}
}

// Begun returns when the first byte of the request was read.
func Begun(ctx *fasthttp.RequestCtx) time.Time {
	c, ok := ctx.Conn().(*connection)
	switch {
	case !ok:
		return time.Now()
	case ctx.ConnRequestNum() == 1 && !c.begun.IsZero():
		return c.begun
	}
	return c.deadline.Add(-c.engine.Server.ReadTimeout)
}

// pendingOf returns the answers of the connection that are not written yet.
func pendingOf(ctx *fasthttp.RequestCtx) *measured.Pending {
	if c, ok := ctx.Conn().(*connection); ok {
		return &c.answers
	}
	return new(measured.Pending) // the handler was called without an engine
}

// SendChunks answers with a body of unknown length, and closes it.
func SendChunks(ctx *fasthttp.RequestCtx, body io.ReadCloser) {
	ctx.Response.SetBodyStream(countedBody{body, pendingOf(ctx)}, -1)
}

// countedBody is a body that counts what is read from it.
type countedBody struct {
	io.ReadCloser
	answers *measured.Pending
}

func (b countedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.answers.Copied(int64(n), err == io.EOF)
	return n, err
}
