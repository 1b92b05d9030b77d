package s3

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"nar-herder/internal/rawio"
)

// pool sends GETs on pooled connections as [http.Transport] does, but in the caller's
// goroutine. Transport has two goroutines for each connection; passing data through
// them is a third of the work for a nar of 200 KB.
//
// The caller must close each response's body. Until then, the request's context
// cancels it.
type pool struct {
	dialer net.Dialer
	// head is the timeout for the head of a response.
	head time.Duration
	// tls is for https; nil for the default.
	tls *tls.Config

	mu     sync.Mutex
	idle   map[string][]*pooledConn // by scheme and host, least recently used first
	closed bool
}

const (
	// poolIdle is how long an unused connection is kept; servers close them, too.
	poolIdle = 60 * time.Second
	// headBuffer holds the head of a response.
	headBuffer = 4 << 10
)

// pooledConn is a connection of a pool.
type pooledConn struct {
	net.Conn
	key    string
	reader *bufio.Reader
	since  time.Time // when it became idle
	used   bool      // by an earlier request
}

// RoundTrip implements [http.RoundTripper].
func (p *pool) RoundTrip(request *http.Request) (*http.Response, error) {
	for {
		conn, err := p.get(request)
		if err != nil {
			return nil, err
		}
		response, err := p.send(conn, request)
		if err == nil {
			return response, nil
		}
		conn.Close()
		// The server may have closed an idle connection just now: try a new one.
		if !conn.used || request.Context().Err() != nil {
			return nil, err
		}
	}
}

// get returns an idle connection or a new one.
func (p *pool) get(request *http.Request) (*pooledConn, error) {
	key := request.URL.Scheme + "://" + request.URL.Host
	p.mu.Lock()
	for kept := p.idle[key]; len(kept) > 0; kept = p.idle[key] {
		last := kept[len(kept)-1]
		kept[len(kept)-1] = nil
		p.idle[key] = kept[:len(kept)-1]
		if time.Since(last.since) < poolIdle {
			p.mu.Unlock()
			last.used = true
			return last, nil
		}
		last.Close()
	}
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(request.Context(), dialTimeout)
	defer cancel()
	host, port := request.URL.Hostname(), request.URL.Port()
	var conn net.Conn
	var err error
	if request.URL.Scheme == "https" {
		dialer := tls.Dialer{NetDialer: &p.dialer, Config: p.tls} // HTTP/1.1, as it offers nothing else
		conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, orPort(port, "443")))
	} else {
		conn, err = p.dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, orPort(port, "80")))
	}
	if err != nil {
		return nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		raw, err := tcp.SyscallConn()
		if err != nil {
			tcp.Close()
			return nil, err
		}
		conn = plainConn{tcp, rawio.NewReader(raw), rawio.NewWriter(raw)}
	}
	return &pooledConn{Conn: conn, key: key, reader: bufio.NewReaderSize(conn, headBuffer)}, nil
}

// plainConn is a connection without TLS.
type plainConn struct {
	*net.TCPConn
	reader *rawio.Reader
	writer *rawio.Writer
}

func (c plainConn) Read(p []byte) (int, error)  { return c.reader.Read(p) }
func (c plainConn) Write(p []byte) (int, error) { return c.writer.Write(p) }

func orPort(port, standard string) string {
	if port == "" {
		return standard
	}
	return port
}

// aLongTimeAgo is a deadline that has passed.
var aLongTimeAgo = time.Unix(1, 0)

// send writes the request and reads the head of its response.
func (p *pool) send(conn *pooledConn, request *http.Request) (*http.Response, error) {
	ctx := request.Context()
	if err := conn.SetDeadline(time.Now().Add(p.head)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(aLongTimeAgo) })
	response, err := ask(conn, request)
	if err != nil {
		stop()
		return nil, errors.Join(ctx.Err(), err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil || ctx.Err() != nil {
		stop()
		return nil, errors.Join(ctx.Err(), err)
	}
	body := &pooledBody{Reader: response.Body, pool: p, conn: conn, stop: stop, keep: !response.Close}
	if response.Body == nil || response.ContentLength >= 0 && (response.StatusCode == http.StatusOK || response.StatusCode == http.StatusPartialContent) {
		body.Reader = &knownBody{conn.reader, response.ContentLength}
	}
	response.Body = body
	return response, nil
}

func ask(conn *pooledConn, request *http.Request) (*http.Response, error) {
	head := make([]byte, 0, 1024)
	head = append(head, "GET "...)
	head = append(head, request.URL.RequestURI()...)
	head = append(head, " HTTP/1.1\r\nHost: "...)
	head = append(head, request.Host...)
	head = append(head, "\r\n"...)
	for key, values := range request.Header {
		for _, value := range values {
			head = append(append(append(append(head, key...), ": "...), value...), "\r\n"...)
		}
	}
	if _, err := conn.Write(append(head, "\r\n"...)); err != nil {
		return nil, err
	}
	if response := parseHead(conn.reader); response != nil {
		return response, nil
	}
	for {
		response, err := http.ReadResponse(conn.reader, request)
		if err != nil {
			return nil, err
		}
		if response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			return response, nil
		}
		response.Body.Close() // 1xx: the final response follows
	}
}

// readHeaders are the response headers that this package reads, in canonical form.
var readHeaders = []string{
	"Content-Length", "Transfer-Encoding", "Connection",
	"Etag", "Last-Modified", "Content-Range", tokenHeader, sumHeader, "X-Amz-Checksum-Crc32c", "X-Amz-Checksum-Crc32", "X-Amz-Checksum-Type",
}

// parseHead parses the head of a plain 200 or 206 if it is completely buffered. Otherwise
// it consumes nothing and returns nil: the caller then uses [http.ReadResponse], which
// takes several times as long. The response has readHeaders only.
func parseHead(reader *bufio.Reader) *http.Response {
	if _, err := reader.Peek(1); err != nil {
		return nil // the caller gets the error when it reads
	}
	buffered, _ := reader.Peek(reader.Buffered())
	head, _, whole := bytes.Cut(buffered, []byte("\r\n\r\n"))
	first, lines, _ := bytes.Cut(head, []byte("\r\n"))
	response := &http.Response{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1, Header: make(http.Header, 8)}
	switch {
	case !whole || bytes.ContainsFunc(first, notInValue):
		return nil
	case bytes.HasPrefix(first, []byte("HTTP/1.1 200 ")):
		response.StatusCode = http.StatusOK
	case bytes.HasPrefix(first, []byte("HTTP/1.1 206 ")):
		response.StatusCode = http.StatusPartialContent
	default:
		return nil
	}
	for line := range bytes.SplitSeq(lines, []byte("\r\n")) {
		name, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || len(name) == 0 || bytes.ContainsFunc(name, notInName) || bytes.ContainsFunc(value, notInValue) {
			return nil
		}
		for _, known := range readHeaders {
			if len(name) != len(known) || !strings.EqualFold(string(name), known) {
				continue
			}
			if response.Header[known] != nil {
				return nil
			}
			response.Header[known] = []string{string(bytes.Trim(value, " \t"))}
		}
	}
	length, err := strconv.ParseUint(response.Header.Get("Content-Length"), 10, 63)
	if err != nil || response.Header["Transfer-Encoding"] != nil {
		return nil
	}
	if kept := response.Header["Connection"]; kept != nil && !strings.EqualFold(kept[0], "keep-alive") {
		return nil
	}
	response.ContentLength = int64(length)
	_, _ = reader.Discard(len(head) + len("\r\n\r\n"))
	return response
}

func notInName(r rune) bool {
	return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

func notInValue(r rune) bool { return r < ' ' && r != '\t' || r > '~' }

// pooledBody returns the connection to the pool after it was read to EOF.
type pooledBody struct {
	io.Reader
	pool  *pool
	conn  *pooledConn
	stop  func() bool
	keep  bool
	ended bool // by EOF
}

func (b *pooledBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		b.ended = true
	}
	return n, err
}

// Close implements [io.Closer]. It closes the connection if the response wasn't read to
// EOF: reading the rest would take longer than a new connection.
func (b *pooledBody) Close() error {
	if b.conn == nil {
		return nil
	}
	conn := b.conn
	b.conn = nil
	// A context that has ended sets a deadline, now or soon.
	if alive := b.stop(); !alive || !b.ended || !b.keep || conn.reader.Buffered() > 0 {
		return conn.Close()
	}
	b.pool.put(conn)
	return nil
}

// knownBody is a body of known length.
type knownBody struct {
	reader *bufio.Reader
	left   int64
}

// Read implements [io.Reader]. It returns the few bytes that came with the head together
// with those that follow: alone, they would become a packet of their own.
func (b *knownBody) Read(p []byte) (n int, err error) {
	p = p[:min(int64(len(p)), b.left)]
	if b.reader.Buffered() > 0 {
		n, _ = b.reader.Read(p)
	}
	if n < len(p) {
		var more int
		more, err = b.reader.Read(p[n:])
		n += more
	}
	if b.left -= int64(n); b.left == 0 {
		return n, io.EOF
	}
	if n > 0 {
		return n, nil // an error is returned by the next Read
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return 0, err
}

// put returns a connection to the pool.
func (p *pool) put(free *pooledConn) {
	free.since = time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.idle[free.key]
	if p.closed || len(kept) >= idleConnections {
		free.Close()
		return
	}
	if len(kept) > 0 && time.Since(kept[0].since) >= poolIdle {
		// Close connections that were unused for too long, one at a time.
		kept[0].Close()
		kept = append(kept[:0], kept[1:]...)
	}
	if p.idle == nil {
		p.idle = make(map[string][]*pooledConn, 1)
	}
	p.idle[free.key] = append(kept, free)
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, kept := range p.idle {
		for _, conn := range kept {
			conn.Close()
		}
	}
	p.idle = nil
}
