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

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/respond"
)

const (
	// retryAfter is the Retry-After header while the server starts, in seconds.
	retryAfter = "60"
	// startPatience is how long requests wait for the server before they get 503: most
	// starts are over by then, and the client of Guix takes an item that it got 503 for
	// as absent for ten minutes.
	startPatience = 5 * time.Second
)

// Starting answers in the place of a server that can't be made yet, as the database is
// still being fetched, converted or opened. The connections of its clients stay open and
// are then the server's, which takes over Engine.
type Starting struct {
	log        *slog.Logger
	hideHealth bool           // at Path
	Engine     *engine.Engine // becomes the Server's

	answering atomic.Pointer[answering]
	mu        sync.Mutex // of who sets it
	final     bool       // SetState has no effect any more
}

// answering are handlers of requests, and of what can't be read as one.
type answering struct {
	handle fasthttp.RequestHandler
	fail   func(*fasthttp.RequestCtx, error)
	over   chan struct{} // closed when others answer
}

// NewStarting makes a Starting with the limits of its connections, from which trusted
// proxies are exempt. With hideHealth, /health is answered as all else is.
func NewStarting(hideHealth bool, limits engine.Limits, proxies engine.Proxies, log *slog.Logger) *Starting {
	s := &Starting{log: log, hideHealth: hideHealth}
	s.Engine = engine.New(
		func(ctx *fasthttp.RequestCtx) { s.answering.Load().handle(ctx) },
		func(ctx *fasthttp.RequestCtx, err error) { s.answering.Load().fail(ctx, err) },
		limits, proxies, log,
	)
	s.SetState(nil)
	return s
}

// SetState sets what /health says from now on, as JSON, and has all else but
// /health/live get 503 at once. With nil, the server is about to be made: the state is
// "starting", and requests wait for five seconds before they get 503.
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

// handler returns what answers at once.
func (s *Starting) handler(state func() any) fasthttp.RequestHandler {
	if s.hideHealth {
		state = nil
	}
	return func(ctx *fasthttp.RequestCtx) { answerStarting(ctx, state, s.log) }
}

// AnswerBy sets what answers from now on.
func (s *Starting) AnswerBy(handle fasthttp.RequestHandler, fail func(*fasthttp.RequestCtx, error)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.final = true
	s.set(handle, fail)
}

// set sets what answers. The mutex is held.
func (s *Starting) set(handle fasthttp.RequestHandler, fail func(*fasthttp.RequestCtx, error)) {
	s.replace(&answering{handle, fail, make(chan struct{})})
}

func (s *Starting) replace(a *answering) {
	if before := s.answering.Swap(a); before != nil {
		close(before.over)
	}
}

// Serve answers requests from the listeners that the server is starting, until done is
// closed. The listeners are still open then, and so are the connections that it has
// accepted: requests on them are answered as before until a Server serves. It also
// returns when the context ends, and closes the connections then as a Server does.
func (s *Starting) Serve(ctx context.Context, done <-chan struct{}, listeners ...net.Listener) {
	var serving sync.WaitGroup
	lent := make([]*lentListener, len(listeners))
	for i, listener := range listeners {
		lent[i] = &lentListener{Listener: listener}
		serving.Go(func() { _ = s.Engine.Serve(lent[i]) }) // until it is taken back
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

// answerStarting answers one request.
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
