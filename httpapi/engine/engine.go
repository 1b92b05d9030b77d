// Package engine accepts the connections of clients, keeps them within limits, and lets
// fasthttp answer their requests.
//
// fasthttp reads requests and writes heads and short bodies. It is bypassed where it
// can't do what clients need. All that is here:
//
//   - Reading ahead. A client may write a thousand requests before it reads the first
//     answer, as that of Guix does. fasthttp would wait for ever in a write. While a write
//     makes no progress, [connection] therefore reads the next requests into memory, which
//     the limits bound; see connection.slowly and connection.readAhead.
//   - Files. [SendFile] sends a file with sendfile(2), without copying it through this
//     process. fasthttp writes the head only, at once, and with MSG_MORE, so that head and
//     body share a segment.
//   - Bodies that are not files, such as decompressed nars. [SendCopy] writes pieces of
//     [decoders.Piece] past fasthttp's small buffer. The connection holds the head back and
//     writes it with the first piece. Memory for a piece is only used while the client
//     takes bytes.
//   - Bodies of unknown length for HTTP/1.0, which has no chunks. [SendUntilClose] takes the
//     connection from fasthttp and ends the body with it.
//   - Bodies of requests. None of our requests has one, but fasthttp would reserve as much
//     memory as the head announces. hideBody removes the body from the head, and the
//     connection is closed after the answer.
//   - Requests that fasthttp accepts although RFC 9112 doesn't, see [Violation], and lines
//     that end without a carriage return, see connection.readBare.
//
// fasthttp reads from the connection's coroutine on an [eventloop]: what takes a short
// time calls [Enter] first, and what may take long calls [LeaveLoop].
package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"
)

const (
	// HeaderTimeout is for the bytes of one request. The client of Guix sends
	// up to a thousand requests at once, but each comes in one piece.
	HeaderTimeout = 15 * time.Second
	// IdleTimeout is for a kept connection without a request. A client that
	// builds between two downloads comes back within minutes.
	IdleTimeout = 5 * time.Minute
	// progressTimeout is for an answer of which the client takes no byte.
	// There is none on an answer as a whole: nars are large and lines slow.
	progressTimeout = 60 * time.Second

	// ReadBuffer bounds the head of a request, as nginx does, and is what a
	// pipelined burst is read by.
	ReadBuffer = 8 << 10
	// writeBuffer gathers pipelined answers into one write.
	writeBuffer = 16 << 10

	// shutdownGrace is for answers in flight once the server stops.
	// A supervisor kills after about five seconds; a cut download is resumed
	// or fetched from another server, so a longer wait is useless.
	shutdownGrace = time.Second
)

// Engine serves connections. It is made by [New].
type Engine struct {
	// Server reads requests and writes answers.
	Server *fasthttp.Server

	// ProgressTimeout is for an answer of which the client takes no byte, QuietTime for
	// how long a client must have sent nothing before its connection is closed when the
	// server stops, and Grace for answers in flight then. They have defaults, which tests
	// change before Serve.
	ProgressTimeout, QuietTime, Grace time.Duration

	log     *slog.Logger
	limits  Limits
	proxies Proxies

	mu   sync.Mutex
	open group
	// clients are the groups of the addresses that Limits.PerAddress is for.
	clients map[netip.Prefix]*group
	// noneIdle is when idle connections were last looked for in vain.
	noneIdle time.Time
	// logged is when it was last logged that connections are closed to make room.
	logged time.Time

	// unread is the memory for requests that were read ahead, in bytes.
	unread atomic.Int64
	// closed counts connections that were closed, by reason.
	closed [closeReasons]atomic.Int64

	draining atomic.Bool  // connections end once their clients are quiet; see drain
	ending   atomic.Bool  // each answer is the last of its connection
	sending  atomic.Int32 // how many bodies are being sent from files
}

// New makes an engine whose requests are answered by handle, and by fail where they
// can't be read. Trusted proxies are exempt from the limit of an address.
func New(handle fasthttp.RequestHandler, fail func(*fasthttp.RequestCtx, error), limits Limits, proxies Proxies, log *slog.Logger) *Engine {
	within := limits.within(Descriptors())
	if within.Connections < limits.Connections {
		log.Warn("--max-connections is more than half of the limit of open files, and is lowered to that: raise the limit", "connections", within.Connections)
	}
	return &Engine{
		Server: &fasthttp.Server{
			Handler: func(ctx *fasthttp.RequestCtx) {
				if HasBody(ctx) {
					CloseAfter(ctx)
				}
				handle(ctx)
			},
			ErrorHandler:          fail,
			NoDefaultServerHeader: true,
			NoDefaultContentType:  true,
			ReadTimeout:           HeaderTimeout,
			IdleTimeout:           IdleTimeout,
			ReadBufferSize:        ReadBuffer,
			WriteBufferSize:       writeBuffer,
			HeaderReceived:        hideBody,
			LazyRequestTime:       true,
			// It logs what clients do wrong, which is not the administrator's business.
			Logger:                        discardLogger{},
			DisablePreParseMultipartForm:  true,
			DisableHeaderNamesNormalizing: false,
		},
		ProgressTimeout: progressTimeout, QuietTime: quietTime, Grace: shutdownGrace,
		log: log, limits: within, proxies: proxies,
		open: newGroup(), clients: make(map[netip.Prefix]*group),
	}
}

// AnswerBadRequest answers what could not be read as a request. The connection is closed
// after it.
func AnswerBadRequest(ctx *fasthttp.RequestCtx, err error) {
	status, message := fasthttp.StatusBadRequest, "this is not a well-formed HTTP request"
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.As(err, &small):
		status, message = fasthttp.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the head of a request has at most %d bytes here", ReadBuffer)
	case strings.Contains(err.Error(), "missing required host header"): // an error that can't be named
		message = "the request has no Host header, or an empty one"
	case errors.Is(err, errBareLines):
		message = errBareLines.Error()
	case errors.As(err, &netErr) && netErr.Timeout():
		status, message = fasthttp.StatusRequestTimeout, "the request took too long to arrive"
	}
	ctx.Response.Reset()
	ctx.Response.SetStatusCode(status)
	ctx.Response.Header.SetContentType("text/plain; charset=utf-8")
	ctx.Response.SetBodyString(message + "\n")
	CloseAfter(ctx)
}

// discardLogger drops the messages of fasthttp.
type discardLogger struct{}

func (discardLogger) Printf(string, ...any) {}

// Register adds the metrics of the connections.
func (e *Engine) Register(registry prometheus.Registerer) {
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("narherder_http_connections", "Open connections.", func() float64 { return float64(e.size()) })
	gauge("narherder_http_connections_limit", "Connections that may be open.", func() float64 { return float64(e.limits.Connections) })
	gauge("narherder_http_unread_bytes", "Memory for requests of clients that don't read the answers to those before.", func() float64 { return float64(e.unread.Load()) })
	gauge("narherder_http_unread_limit_bytes", "What that may be at the most.", func() float64 { return float64(e.limits.Unread) })
	for reason, name := range closeReasonNames {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "narherder_http_connections_closed_total",
			Help:        "Connections closed to stay within the limits: idle, stalled, or busy ones of an address with many for others, those with unread answers, and new ones of an address that has too many.",
			ConstLabels: prometheus.Labels{"reason": name},
		}, func() float64 { return float64(e.closed[reason].Load()) }))
	}
}

// Usage is what an engine's clients take of its limits.
type Usage struct {
	Open    int              // connections
	Closing int              // connections that were closed and have not ended
	Idle    []time.Time      // since when connections wait for a request
	Stalled []time.Time      // since when clients take nothing of their answers
	Unread  int64            // memory for requests that were read ahead, in bytes
	Closed  map[string]int64 // how many connections were closed to stay within the limits, by reason
}

// Usage returns the usage at this moment.
func (e *Engine) Usage() Usage {
	e.mu.Lock()
	defer e.mu.Unlock()
	u := Usage{Open: e.open.size(), Closing: e.open.leaving, Unread: e.unread.Load(), Closed: make(map[string]int64)}
	for reason, name := range closeReasonNames {
		u.Closed[name] = e.closed[reason].Load()
	}
	for c := range e.open.members {
		if v, ok := c.waits(); ok && v.stalled {
			u.Stalled = append(u.Stalled, v.since)
		} else if ok {
			u.Idle = append(u.Idle, v.since)
		}
	}
	return u
}
