package httpapi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// retryAfter is what clients are told while the server starts, in seconds.
const retryAfter = "60"

// ServeStarting answers in the place of a [Server] that can't be made yet, as the
// database is still being fetched or converted: that it is starting, with 503, and
// at /health how far that is. It returns when done is closed or the context ends,
// and leaves the listeners open, as they are for the Server. Without state, /health is
// answered as all else is.
func ServeStarting(ctx context.Context, done <-chan struct{}, state func() any, log *slog.Logger, listeners ...net.Listener) {
	handler := func(request *fasthttp.RequestCtx) {
		answerStarting(request, state, log)
		// The next request of the client is for the server.
		request.SetConnectionClose()
	}
	engine := &fasthttp.Server{
		Handler: handler, NoDefaultServerHeader: true, NoDefaultContentType: true, ReadTimeout: headerTimeout, IdleTimeout: headerTimeout,
		ReadBufferSize: readBuffer, MaxRequestBodySize: maxBody, Logger: discardLogger{},
	}
	connections := newConnections(log, progressTimeout)
	var serving sync.WaitGroup
	lent := make([]*lentListener, len(listeners))
	for i, listener := range listeners {
		lent[i] = &lentListener{Listener: listener}
		serving.Go(func() { _ = engine.Serve(connections.listen(lent[i])) }) // until it is taken back
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	for _, listener := range lent {
		listener.takeBack()
	}
	serving.Wait()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	if engine.ShutdownWithContext(grace) != nil {
		connections.closeAll()
	}
	for _, listener := range lent {
		listener.ready()
	}
}

// answerStarting answers one request.
func answerStarting(ctx *fasthttp.RequestCtx, state func() any, log *slog.Logger) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.Response.Header.Set("Retry-After", retryAfter)
	ctx.Response.SetStatusCode(fasthttp.StatusServiceUnavailable)
	switch path := string(ctx.Path()); {
	case path == "/health/live":
		ctx.Response.SetStatusCode(fasthttp.StatusOK)
		ctx.Response.Header.SetContentType("application/json")
		ctx.Response.SetBodyString(liveBody)
	case path == "/health" && state != nil:
		var body bytes.Buffer
		if err := writeJSON(&body, state()); err != nil {
			log.Error("can't write the health", "error", err)
			body.Reset()
		}
		ctx.Response.Header.SetContentType("application/json")
		ctx.Response.SetBody(append(body.Bytes(), '\n'))
	default:
		ctx.Response.Header.SetContentType("text/plain; charset=utf-8")
		ctx.Response.SetBodyString("this server is still starting\n")
	}
}

// lentListener is a listener that stays open when who serves from it is done.
type lentListener struct {
	net.Listener
	taken atomic.Bool
}

// deadlined are listeners of sockets.
type deadlined interface{ SetDeadline(time.Time) error }

// Accept ends once the listener is taken back, which the engine does not take for a
// failure that passes.
func (l *lentListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil && l.taken.Load() {
		return nil, io.EOF
	}
	return conn, err
}

// takeBack has Accept fail.
func (l *lentListener) takeBack() {
	l.taken.Store(true)
	if listener, ok := l.Listener.(deadlined); ok {
		_ = listener.SetDeadline(time.Now()) // it fails where it is closed
	}
}

// ready has Accept wait again.
func (l *lentListener) ready() {
	if listener, ok := l.Listener.(deadlined); ok {
		_ = listener.SetDeadline(time.Time{})
	}
}

// Close leaves the listener open.
func (l *lentListener) Close() error { return nil }
