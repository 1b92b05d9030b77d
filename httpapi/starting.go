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

// Starting answers in the place of a [Server] that can't be made yet, as the database is
// still being fetched or converted. The connections of its clients stay open and are
// then the Server's: see [Options].
type Starting struct {
	log         *slog.Logger
	engine      *fasthttp.Server
	connections *connections
	grace       time.Duration // but in tests, shutdownGrace

	// answering is what answers now; nil while requests wait for it.
	answering atomic.Pointer[answering]
	mu        sync.Mutex
	changed   chan struct{} // closed when answering is set
}

// answering are handlers of requests, and of what can't be read as one.
type answering struct {
	handle fasthttp.RequestHandler
	fail   func(*fasthttp.RequestCtx, error)
}

// NewStarting makes a Starting, which answers nothing before it is told to.
func NewStarting(log *slog.Logger) *Starting {
	s := &Starting{log: log, connections: newConnections(log, progressTimeout), grace: shutdownGrace, changed: make(chan struct{})}
	s.engine = newEngine(
		func(ctx *fasthttp.RequestCtx) { s.await().handle(ctx) },
		func(ctx *fasthttp.RequestCtx, err error) { s.await().fail(ctx, err) },
	)
	return s
}

// await waits until there is something that answers.
func (s *Starting) await() *answering {
	for {
		if now := s.answering.Load(); now != nil {
			return now
		}
		s.mu.Lock()
		changed := s.changed
		s.mu.Unlock()
		if now := s.answering.Load(); now != nil {
			return now
		}
		<-changed
	}
}

// answerBy sets what answers from now on; with nil, requests wait.
func (s *Starting) answerBy(a *answering) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answering.Store(a)
	if a != nil {
		close(s.changed)
		s.changed = make(chan struct{})
	}
}

// Serve answers requests from the listeners that the server is starting, with 503, and at
// /health how far that is; without state, /health is answered as all else is. It returns when done is closed: the listeners are still open
// then, and requests on connections that it has accepted wait for the next Serve, or for
// that of a Server. It also returns when the context ends, and closes the connections
// then as a Server does.
func (s *Starting) Serve(ctx context.Context, done <-chan struct{}, state func() any, listeners ...net.Listener) {
	s.answerBy(&answering{
		handle: func(ctx *fasthttp.RequestCtx) { answerStarting(ctx, state, s.log) },
		fail:   answerBadRequest,
	})
	var serving sync.WaitGroup
	lent := make([]*lentListener, len(listeners))
	for i, listener := range listeners {
		lent[i] = &lentListener{Listener: listener}
		serving.Go(func() { _ = s.engine.Serve(s.connections.listen(lent[i])) }) // until it is taken back
	}
	select {
	case <-done:
		s.answerBy(nil)
	case <-ctx.Done():
	}
	for _, listener := range lent {
		listener.takeBack()
	}
	serving.Wait()
	if ctx.Err() != nil {
		stopServing(s.engine, s.connections, s.grace, func() {
			s.answerBy(&answering{
				handle: func(ctx *fasthttp.RequestCtx) {
					answerStarting(ctx, state, s.log)
					ctx.SetConnectionClose()
				},
				fail: answerBadRequest,
			})
		}, func() {}, s.log)
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
