// Package engine accepts the connections of clients, and lets fasthttp answer their requests.
//
// fasthttp reads requests and writes heads and short bodies. This package bypasses it for:
//
//   - Reading ahead. The client of Guix may write a thousand requests before it reads the
//     first answer, and fasthttp would never return from a write. While a write makes no
//     progress, [connection] therefore reads the next requests into memory, within the
//     limits; see connection.slowly and connection.readAhead.
//   - Files. [SendFile] sends a file with sendfile(2), without copying it through this
//     process. fasthttp writes only the head, with MSG_MORE, so that head and body share a
//     segment.
//   - Bodies that are not files, such as decompressed nars. [SendCopy] writes pieces of
//     [decoders.Piece] past fasthttp's small buffer. The connection holds the head back and
//     writes it with the first piece. A piece takes memory only while the client reads.
//   - Bodies of unknown length for HTTP/1.0, which has no chunks. [SendUntilClose] takes the
//     connection from fasthttp and ends the body with it.
//   - Bodies of requests. No request here needs one, but fasthttp would reserve as much
//     memory as the head announces. hideBody removes the body from the head, and the
//     connection is closed after the answer.
//   - Requests that fasthttp accepts although RFC 9112 doesn't, see [Violation], and lines
//     that end without a carriage return, see connection.readBare.
//
// Requests are handled in the connection's coroutine on an [eventloop]. Handlers call [Enter]
// before work that takes a short time, and [LeaveLoop] before work that may take long.
package engine

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine/admission"
	"nar-herder/internal/eventloop"
	"nar-herder/internal/logonce"
)

const (
	// HeaderTimeout is the timeout for reading one request.
	HeaderTimeout = 15 * time.Second
	// IdleTimeout is the keep-alive timeout. Clients often build between two downloads
	// and are back within minutes.
	IdleTimeout = 5 * time.Minute
	// progressTimeout is the timeout for an answer while the client reads nothing.
	// There is none for a whole answer: nars are large and connections slow.
	progressTimeout = 60 * time.Second

	// ReadBuffer is the size of reads, and the limit for the head of a request, as in nginx.
	ReadBuffer = 8 << 10
	// writeBuffer gathers pipelined answers into one write.
	writeBuffer = 16 << 10

	// shutdownGrace is the time for answers in flight once the server stops. A longer
	// one is useless: supervisors kill after about five seconds, and clients resume a
	// cut download or use another server.
	shutdownGrace = time.Second
)

// Engine serves connections. Use [New] to make one.
type Engine struct {
	// Server reads requests and writes answers.
	Server *fasthttp.Server

	// ProgressTimeout is the timeout for an answer while the client reads nothing. When
	// the server stops, QuietTime is how long a client must have sent nothing before its
	// connection is closed, and Grace is the time for answers in flight. Tests change the
	// defaults before Serve.
	ProgressTimeout, QuietTime, Grace time.Duration

	log *slog.Logger
	// unaccepted and unserved remember logged failures.
	unaccepted, unserved logonce.Filter

	// open are the connections.
	open *admission.Connections
	// handshakes bounds handshakes of TLS, and handshakeFailures counts those that failed.
	handshakes        *eventloop.Pool
	handshakeFailures atomic.Int64

	draining atomic.Bool  // connections end once their clients are quiet; see drain
	ending   atomic.Bool  // connections end after their answer; see endAll
	sending  atomic.Int32 // how many bodies are being sent from files
}

// New makes an engine that calls handle for requests, and fail for malformed ones. Trusted
// proxies are exempt from the limit per address.
func New(handle fasthttp.RequestHandler, fail func(*fasthttp.RequestCtx, error), limits admission.Limits, proxies clients.Proxies, log *slog.Logger) *Engine {
	return &Engine{
		Server: &fasthttp.Server{
			Handler: func(ctx *fasthttp.RequestCtx) {
				if HasBody(ctx) {
					CloseAfter(ctx)
				}
				handle(ctx)
			},
			ErrorHandler:                  fail,
			NoDefaultServerHeader:         true,
			NoDefaultContentType:          true,
			ReadTimeout:                   HeaderTimeout,
			IdleTimeout:                   IdleTimeout,
			ReadBufferSize:                ReadBuffer,
			WriteBufferSize:               writeBuffer,
			HeaderReceived:                hideBody,
			LazyRequestTime:               true,
			Logger:                        discardLogger{}, // only errors of clients
			DisablePreParseMultipartForm:  true,
			DisableHeaderNamesNormalizing: false,
		},
		ProgressTimeout: progressTimeout, QuietTime: quietTime, Grace: shutdownGrace,
		log: log, open: admission.New(limits, proxies, log),
		handshakes: eventloop.NewPool(max(1, runtime.GOMAXPROCS(0)-1)),
	}
}

// AnswerBadRequest answers a malformed request, and closes the connection after it.
func AnswerBadRequest(ctx *fasthttp.RequestCtx, err error) {
	status, message := fasthttp.StatusBadRequest, "this is not a well-formed HTTP request"
	var small *fasthttp.ErrSmallBuffer
	var netErr net.Error
	switch {
	case errors.As(err, &small):
		status, message = fasthttp.StatusRequestHeaderFieldsTooLarge, fmt.Sprintf("the head of a request has at most %d bytes here", ReadBuffer)
	case strings.Contains(err.Error(), "missing required host header"): // fasthttp doesn't export the error
		message = "the request has no Host header, or an empty one"
	case errors.Is(err, errBareLines):
		message = errBareLines.Error()
	case errors.Is(err, errTLS):
		message = errTLS.Error()
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
	e.open.Register(registry)
	registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_tls_handshake_failures_total", Help: "TLS handshakes that failed, including those of clients that don't use TLS.",
	}, func() float64 { return float64(e.handshakeFailures.Load()) }))
}

// Usage returns how much of the limits is used.
func (e *Engine) Usage() admission.Usage { return e.open.Usage() }
