package health

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

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/engine/admission"
	"nar-herder/httpapi/respond"
)

const (
	// retryAfter is the Retry-After header while the server starts, in seconds.
	retryAfter = "60"
	// startPatience is how long requests wait for the server before they get 503. Most
	// servers have started by then, and the client of Guix caches a 503 as a missing item
	// for ten minutes.
	startPatience = 5 * time.Second
)

// Starting answers requests while the database is being fetched, converted or opened. The
// server then takes over its Engine, with the open connections.
type Starting struct {
	log        *slog.Logger
	hideHealth bool           // at Path
	Engine     *engine.Engine // becomes the Server's

	answering atomic.Pointer[answering]
	mu        sync.Mutex // serializes writes
	final     bool       // SetState has no effect any more
}

// answering are the handlers of requests, and of malformed ones.
type answering struct {
	handle fasthttp.RequestHandler
	fail   func(*fasthttp.RequestCtx, error)
	over   chan struct{} // closed when these handlers are replaced
}

// NewStarting makes a Starting with limits for its connections, from which trusted
// proxies are exempt. With hideHealth, /health is answered like any other path.
func NewStarting(hideHealth bool, limits admission.Limits, proxies clients.Proxies, log *slog.Logger) *Starting {
	s := &Starting{log: log, hideHealth: hideHealth}
	s.Engine = engine.New(
		func(ctx *fasthttp.RequestCtx) { s.answering.Load().handle(ctx) },
		func(ctx *fasthttp.RequestCtx, err error) { s.answering.Load().fail(ctx, err) },
		limits, proxies, log,
	)
	s.SetState(nil)
	return s
}

// SetState sets the state that /health answers as JSON. Other requests, except /health/live,
// get 503 at once. With nil, the server is about to start: the state is "starting", and
// requests wait for five seconds before they get 503.
func (s *Starting) SetState(state func() any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.final {
		return
	}
	if state != nil {
		s.set(s.handler(state), engine.AnswerBadRequest)
		return
	}
	answer := s.handler(func() any { return map[string]string{"status": "starting"} })
	patience, over := make(chan struct{}), make(chan struct{})
	time.AfterFunc(startPatience, func() { close(patience) })
	s.replace(&answering{func(ctx *fasthttp.RequestCtx) {
		if path := string(ctx.Path()); path != LivePath && path != ReadyPath && (path != Path || s.hideHealth) {
			engine.LeaveLoop(ctx)
			select {
			case <-over:
				s.answering.Load().handle(ctx)
				return
			case <-patience:
			}
		}
		answer(ctx)
	}, engine.AnswerBadRequest, over})
}

// handler returns a handler that answers at once.
func (s *Starting) handler(state func() any) fasthttp.RequestHandler {
	if s.hideHealth {
		state = nil
	}
	return func(ctx *fasthttp.RequestCtx) { answerStarting(ctx, state, s.log) }
}

// AnswerBy sets the handlers, finally.
func (s *Starting) AnswerBy(handle fasthttp.RequestHandler, fail func(*fasthttp.RequestCtx, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.final = true
	s.set(handle, fail)
}

// set sets the handlers. The mutex is held.
func (s *Starting) set(handle fasthttp.RequestHandler, fail func(*fasthttp.RequestCtx, error)) {
	s.replace(&answering{handle, fail, make(chan struct{})})
}

func (s *Starting) replace(a *answering) {
	if before := s.answering.Swap(a); before != nil {
		close(before.over)
	}
}

// Serve answers that the server is starting, until done is closed. The listeners and the
// accepted connections then stay open, and requests are answered as before until a Server
// serves. If the context ends first, Serve closes the connections as a Server does.
func (s *Starting) Serve(ctx context.Context, done <-chan struct{}, listeners ...net.Listener) {
	var serving sync.WaitGroup
	lent := make([]*lentListener, len(listeners))
	for i, listener := range listeners {
		lent[i] = &lentListener{Listener: listener}
		serving.Go(func() { _ = s.Engine.Serve(lent[i]) }) // until takeBack
	}
	select {
	case <-done:
	case <-ctx.Done():
	}
	for _, listener := range lent {
		listener.takeBack()
	}
	serving.Wait()
	if ctx.Err() != nil {
		answer := s.handler(func() any { return map[string]string{"status": "stopping"} })
		s.AnswerBy(answer, engine.AnswerBadRequest)
		s.Engine.Stop(func() {
			s.AnswerBy(func(ctx *fasthttp.RequestCtx) {
				answer(ctx)
				engine.CloseAfter(ctx)
			}, engine.AnswerBadRequest)
		}, func() {})
	}
	for _, listener := range lent {
		listener.ready()
	}
}

// answerStarting answers one request with the state.
func answerStarting(ctx *fasthttp.RequestCtx, state func() any, log *slog.Logger) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	ctx.Response.Header.Set("Retry-After", retryAfter)
	ctx.Response.SetStatusCode(fasthttp.StatusServiceUnavailable)
	switch path := string(ctx.Path()); {
	case path == LivePath:
		ctx.Response.SetStatusCode(fasthttp.StatusOK)
		ctx.Response.Header.SetContentType("application/json")
		ctx.Response.SetBodyString(LiveBody)
	case path == ReadyPath:
		ctx.Response.Header.SetContentType("application/json")
		ctx.Response.SetBodyString(`{"status":"starting"}` + "\n")
	case path == Path && state != nil:
		var body bytes.Buffer
		if err := respond.WriteJSON(&body, state()); err != nil {
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

// lentListener is a listener that can be taken back from a server without closing it.
type lentListener struct {
	net.Listener
	taken atomic.Bool
}

// deadlined is implemented by listeners of package net.
type deadlined interface{ SetDeadline(time.Time) error }

// Accept returns io.EOF once the listener was taken back.
func (l *lentListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil && l.taken.Load() {
		return nil, io.EOF
	}
	return conn, err
}

// takeBack makes Accept fail.
func (l *lentListener) takeBack() {
	l.taken.Store(true)
	if listener, ok := l.Listener.(deadlined); ok {
		_ = listener.SetDeadline(time.Now()) // fails if closed
	}
}

// ready makes Accept work again.
func (l *lentListener) ready() {
	if listener, ok := l.Listener.(deadlined); ok {
		_ = listener.SetDeadline(time.Time{})
	}
}

// Close leaves the listener open.
func (l *lentListener) Close() error { return nil }
