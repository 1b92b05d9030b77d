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

// lanes sends GETs as [http.Transport] does, on kept connections, but in the caller's
// goroutine: the two that Transport has for each connection, and what it takes to hand
// on to them and back, are a third of the work for a nar of 200 KB.
//
// The caller closes each answer's body. Its context ends the request until then.
type lanes struct {
	dialer net.Dialer
	// head is how long the head of an answer may take.
	head time.Duration
	// tls is for https; nil for the usual.
	tls *tls.Config

	mu     sync.Mutex
	idle   map[string][]*lane // by scheme and host; the last one used is the last
	closed bool
}

const (
	// laneIdle is how long a connection is kept unused; servers end them, too.
	laneIdle = 60 * time.Second
	// laneBuffer holds the head of an answer.
	laneBuffer = 4 << 10
)

// lane is a connection.
type lane struct {
	net.Conn
	key    string
	reader *bufio.Reader
	since  time.Time // that it is idle
	used   bool      // before
}

// RoundTrip implements [http.RoundTripper].
func (l *lanes) RoundTrip(request *http.Request) (*http.Response, error) {
	for {
		lane, err := l.get(request)
		if err != nil {
			return nil, err
		}
		response, err := l.send(lane, request)
		if err == nil {
			return response, nil
		}
		lane.Close()
		// The server may have ended it just before; with a new one, it is told.
		if !lane.used || request.Context().Err() != nil {
			return nil, err
		}
	}
}

// get returns an idle connection or a new one.
func (l *lanes) get(request *http.Request) (*lane, error) {
	key := request.URL.Scheme + "://" + request.URL.Host
	l.mu.Lock()
	for kept := l.idle[key]; len(kept) > 0; kept = l.idle[key] {
		last := kept[len(kept)-1]
		kept[len(kept)-1] = nil
		l.idle[key] = kept[:len(kept)-1]
		if time.Since(last.since) < laneIdle {
			l.mu.Unlock()
			last.used = true
			return last, nil
		}
		last.Close()
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(request.Context(), dialTimeout)
	defer cancel()
	host, port := request.URL.Hostname(), request.URL.Port()
	var conn net.Conn
	var err error
	if request.URL.Scheme == "https" {
		dialer := tls.Dialer{NetDialer: &l.dialer, Config: l.tls} // which is HTTP/1.1, as no other is named
		conn, err = dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, orPort(port, "443")))
	} else {
		conn, err = l.dialer.DialContext(ctx, "tcp", net.JoinHostPort(host, orPort(port, "80")))
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
	return &lane{Conn: conn, key: key, reader: bufio.NewReaderSize(conn, laneBuffer)}, nil
}

// plainConn is a connection without TLS.
type plainConn struct {
	*net.TCPConn
	reader *rawio.Reader
	writer *rawio.Writer
}

func (c plainConn) Read(p []byte) (int, error)  { return c.reader.Read(p) }
func (c plainConn) Write(p []byte) (int, error) { return c.writer.Write(p) }

func orPort(port, usual string) string {
	if port == "" {
		return usual
	}
	return port
}

// aLongTimeAgo is a deadline that has passed.
var aLongTimeAgo = time.Unix(1, 0)

// send writes the request, and reads the head of its answer.
func (l *lanes) send(lane *lane, request *http.Request) (*http.Response, error) {
	ctx := request.Context()
	if err := lane.SetDeadline(time.Now().Add(l.head)); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = lane.SetDeadline(aLongTimeAgo) })
	response, err := ask(lane, request)
	if err != nil {
		stop()
		return nil, errors.Join(ctx.Err(), err)
	}
	if err := lane.SetDeadline(time.Time{}); err != nil || ctx.Err() != nil {
		stop()
		return nil, errors.Join(ctx.Err(), err)
	}
	body := &laneBody{Reader: response.Body, lanes: l, lane: lane, stop: stop, keep: !response.Close}
	if response.Body == nil || response.ContentLength >= 0 && (response.StatusCode == http.StatusOK || response.StatusCode == http.StatusPartialContent) {
		body.Reader = &knownBody{lane.reader, response.ContentLength}
	}
	response.Body = body
	return response, nil
}

func ask(lane *lane, request *http.Request) (*http.Response, error) {
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
	if _, err := lane.Write(append(head, "\r\n"...)); err != nil {
		return nil, err
	}
	if response := usualAnswer(lane.reader); response != nil {
		return response, nil
	}
	for {
		response, err := http.ReadResponse(lane.reader, request)
		if err != nil {
			return nil, err
		}
		if response.StatusCode >= 200 || response.StatusCode == http.StatusSwitchingProtocols {
			return response, nil
		}
		response.Body.Close() // it says that more is to come
	}
}

// readHeaders are those that something is made of, in the form of [http.Header].
var readHeaders = []string{
	"Content-Length", "Transfer-Encoding", "Connection",
	"Etag", "Last-Modified", "Content-Range", tokenHeader, sumHeader, "X-Amz-Checksum-Crc32c", "X-Amz-Checksum-Crc32", "X-Amz-Checksum-Type",
}

// usualAnswer reads the head of an answer with the bytes that were asked for, if it has
// come as a whole. Of any other it reads nothing and returns nil: it is one for
// [http.ReadResponse], which takes several times as long. It has readHeaders alone.
func usualAnswer(reader *bufio.Reader) *http.Response {
	if _, err := reader.Peek(1); err != nil {
		return nil // it comes again
	}
	come, _ := reader.Peek(reader.Buffered())
	head, _, whole := bytes.Cut(come, []byte("\r\n\r\n"))
	first, lines, _ := bytes.Cut(head, []byte("\r\n"))
	response := &http.Response{Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1, Header: make(http.Header, 8)}
	switch {
	case !whole || bytes.ContainsFunc(first, notOfValue):
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
		if !ok || len(name) == 0 || bytes.ContainsFunc(name, notOfName) || bytes.ContainsFunc(value, notOfValue) {
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

func notOfName(r rune) bool {
	return r != '-' && (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z')
}

func notOfValue(r rune) bool { return r < ' ' && r != '\t' || r > '~' }

// laneBody is a body whose end gives the connection back.
type laneBody struct {
	io.Reader
	lanes *lanes
	lane  *lane
	stop  func() bool
	keep  bool
	ended bool // cleanly
}

func (b *laneBody) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		b.ended = true
	}
	return n, err
}

// Close implements [io.Closer]. Of an answer that was not read to its end, what is left
// would take longer than a new connection.
func (b *laneBody) Close() error {
	if b.lane == nil {
		return nil
	}
	lane := b.lane
	b.lane = nil
	// A context that has ended has a deadline set, now or soon.
	if alive := b.stop(); !alive || !b.ended || !b.keep || lane.reader.Buffered() > 0 {
		return lane.Close()
	}
	b.lanes.put(lane)
	return nil
}

// knownBody is a body of which so many bytes are left.
type knownBody struct {
	reader *bufio.Reader
	left   int64
}

// Read implements [io.Reader]. The few bytes that came with the head go with those that
// follow: by themselves, they would be passed on by themselves.
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
		return n, nil // a failure comes again
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return 0, err
}

// put keeps a connection.
func (l *lanes) put(free *lane) {
	free.since = time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	kept := l.idle[free.key]
	if l.closed || len(kept) >= idleConnections {
		free.Close()
		return
	}
	if len(kept) > 0 && time.Since(kept[0].since) >= laneIdle {
		// One at a time goes of those that nobody has come to.
		kept[0].Close()
		kept = append(kept[:0], kept[1:]...)
	}
	if l.idle == nil {
		l.idle = make(map[string][]*lane, 1)
	}
	l.idle[free.key] = append(kept, free)
}

func (l *lanes) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for _, kept := range l.idle {
		for _, lane := range kept {
			lane.Close()
		}
	}
	l.idle = nil
}
