package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"sync/atomic"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/redirect"
	"nar-herder/upstream/pipeline"
)

const (
	// connections is how many connections with pipelining an upstream has, and depth how many
	// requests are in flight on each: a client sends up to 1,000.
	connections, depth = 4, 256
	// plainRequests is how many requests are in flight without pipelining, and streams with
	// HTTP/2, of which web servers accept 128 on a connection.
	plainRequests, streams = 8, 128
	// mostHops is how many instances a request comes through at most, see [peer.CanPass].
	mostHops = 8
	// idleTimeout is how long connections are kept.
	idleTimeout = time.Minute
	// readBuffer is how much the system keeps until it is read. It begins with less than the
	// answers to a burst, and grows too late for them.
	readBuffer = 1 << 20
	// maxHead bounds the header of an answer, as of [pipeline.Client].
	maxHead = 64 << 10
)

// errHTTP2 reports a server that prefers HTTP/2.
var errHTTP2 = &pipeline.Refusal{Err: errors.New("it speaks HTTP/2")}

// server is an upstream that speaks HTTP: with pipelining, or through a proxy, with HTTP/2, or
// for redirects, by [net/http].
type server struct {
	base   *url.URL
	report func(err error, took time.Duration)
	// pipelined and plain are by [hops]. With a proxy, pipelined are nil.
	pipelined [mostHops]*pipeline.Client
	plain     [mostHops]pool
	client    *http.Client
	timeout   time.Duration
	running   context.Context // ends with close
	cancel    context.CancelFunc
	http2     atomic.Bool
}

func newServer(base *url.URL, o *Options, report func(error, time.Duration)) *server {
	s := &server{base: base, report: report, timeout: o.SilenceTimeout}
	s.running, s.cancel = context.WithCancel(context.Background())
	dialer := net.Dialer{Timeout: o.SilenceTimeout}
	dial := o.dial
	if dial == nil {
		dial = dialer.DialContext
	}
	transport := redirect.NewTransport(base, &http.Transport{
		Proxy:                  redact.Proxy,
		DialContext:            dial,
		TLSClientConfig:        o.tls,
		TLSHandshakeTimeout:    o.SilenceTimeout,
		MaxConnsPerHost:        plainRequests, // until one is known to speak HTTP/2
		MaxIdleConnsPerHost:    plainRequests,
		IdleConnTimeout:        idleTimeout,
		MaxResponseHeaderBytes: maxHead,
		DisableCompression:     true,
		ForceAttemptHTTP2:      true,
	}, dialer, o.AllowPrivateRedirects)
	s.client = &http.Client{Transport: transport, CheckRedirect: transport.Check}
	for n := range s.plain {
		s.plain[n].process = s.answer
		s.plain[n].limit = func() int {
			if s.http2.Load() {
				return streams
			}
			return plainRequests
		}
	}
	// An error of Proxy is reported by each request.
	if proxy, err := redact.Proxy(&http.Request{URL: base}); proxy == nil && err == nil {
		for n := range s.pipelined { // they connect with the first request
			s.pipelined[n] = pipeline.New(pipeline.Options{
				Dial:        func(ctx context.Context) (net.Conn, error) { return s.dial(ctx, dial, o.tls) },
				Connections: connections, Depth: depth,
				Timeout: o.SilenceTimeout, Idle: idleTimeout,
				MaxBody: narinfo.MaxSize,
				Report:  s.report,
			})
		}
	}
	return s
}

// send sends requests with the same Via, with pipelining if possible.
func (s *server) send(calls ...pipeline.Call) {
	if len(calls) == 0 {
		return
	}
	if client := s.pipelined[hops(calls[0])]; client != nil && !s.http2.Load() {
		client.Send(calls...)
	} else {
		s.sendPlain(calls...)
	}
}

// sendPlain sends requests with the same Via, without pipelining.
func (s *server) sendPlain(calls ...pipeline.Call) { s.plain[hops(calls[0])].Send(calls...) }

// hops returns how many instances a request has come through before this one. The answer may
// wait only for answers to requests that have come through more. If these shared connections,
// instances that ask each other would wait for each other.
func hops(call pipeline.Call) int {
	return min(max(peer.Hops(call.Request().Header.Values(peer.ViaHeader))-1, 0), mostHops-1)
}

// dial makes a connection for pipelining.
func (s *server) dial(ctx context.Context, dial func(context.Context, string, string) (net.Conn, error), config *tls.Config) (net.Conn, error) {
	port := s.base.Port()
	if port == "" {
		port = s.base.Scheme // the name of the service
	}
	conn, err := dial(ctx, "tcp", net.JoinHostPort(s.base.Hostname(), port))
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetReadBuffer(readBuffer)
	}
	if err != nil || s.base.Scheme != "https" {
		return conn, err
	}
	if config == nil {
		config = new(tls.Config)
	}
	config = config.Clone()
	config.ServerName, config.NextProtos = s.base.Hostname(), []string{"h2", "http/1.1"}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, peer.Explain(err)
	}
	if secure.ConnectionState().NegotiatedProtocol == "h2" {
		secure.Close()
		s.http2.Store(true)
		return nil, errHTTP2
	}
	return secure, nil
}

// answer sends one request, and waits for its answer. It doesn't end with the call's context, so
// that an upstream that is too slow is noticed.
func (s *server) answer(call pipeline.Call) {
	begun := time.Now()
	response, hasAnswered, err := s.get(s.running, call.Request())
	if err == nil || !hasAnswered || errors.Is(err, pipeline.ErrSilent) {
		s.report(err, time.Since(begun))
	}
	call.Done(response, err)
}

// get sends a request. It reports whether the server has begun an answer, which may still be
// unusable, or be about another server that can't be reached.
func (s *server) get(ctx context.Context, request *http.Request) (_ *pipeline.Response, hasAnswered bool, err error) {
	var begun atomic.Bool
	defer func() {
		hasAnswered = begun.Load()
		var failure net.Error
		if errors.Is(err, context.DeadlineExceeded) || errors.As(err, &failure) && failure.Timeout() {
			err = pipeline.ErrSilent
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotFirstResponseByte: func() { begun.Store(true) }})
	response, err := s.client.Do(request.WithContext(ctx))
	if err != nil {
		return nil, false, peer.Explain(err)
	}
	defer response.Body.Close()
	if response.Request.URL.Host == request.URL.Host && response.Request.URL.Scheme == request.URL.Scheme {
		s.http2.Store(response.ProtoMajor == 2)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, narinfo.MaxSize+1))
	if len(body) > narinfo.MaxSize {
		err = fmt.Errorf("%w: over %d bytes", pipeline.ErrTooLong, narinfo.MaxSize)
	}
	if err != nil {
		return nil, false, peer.Explain(err)
	}
	return &pipeline.Response{Status: response.StatusCode, Header: response.Header, Body: body}, false, nil
}

func (s *server) close() {
	s.cancel()
	for _, client := range s.pipelined {
		if client != nil {
			client.Close()
		}
	}
	s.client.CloseIdleConnections()
}
