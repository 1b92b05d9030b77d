package engine

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"time"

	"github.com/valyala/fasthttp"
)

// A connection with TLS has two sides. fasthttp reads and writes plaintext, with Read and
// Write. Below, the tls.Conn reads and writes records with read and write, as fasthttp itself
// does without TLS: so requests are read ahead, and slow clients wait, in the same way.

// WithTLS returns a listener for [Engine.Serve] that encrypts connections.
func WithTLS(l net.Listener, config *tls.Config) net.Listener {
	config = config.Clone()
	// A write of many small records would need as many system calls.
	config.DynamicRecordSizingDisabled = true
	return &tlsListener{l, config}
}

// HasTLS reports whether a listener is one of WithTLS.
func HasTLS(l net.Listener) bool {
	_, ok := l.(*tlsListener)
	return ok
}

type tlsListener struct {
	net.Listener
	config *tls.Config
}

// toEncrypt is an accepted connection, before the engine takes it over.
type toEncrypt struct {
	net.Conn
	config *tls.Config
}

// Accept implements [net.Listener].
func (l *tlsListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return toEncrypt{conn, l.config}, nil
}

// SetDeadline is like that of [net.TCPListener].
func (l *tlsListener) SetDeadline(t time.Time) error {
	listener, ok := l.Listener.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return errors.ErrUnsupported
	}
	return listener.SetDeadline(t)
}

// IsTLS reports whether the request came over TLS.
func IsTLS(ctx *fasthttp.RequestCtx) bool {
	c, ok := ctx.Conn().(*connection)
	return ok && c.tls != nil
}

// handshake runs the handshake of TLS within the time for a request, and reports whether it succeeded. If
// not, it closes the connection.
func (c *connection) handshake() bool {
	c.deadline = time.Now().Add(c.engine.Server.ReadTimeout)
	c.shakesHands = true
	err := c.tls.Handshake()
	c.shakesHands = false
	if err == nil {
		return true
	}
	c.engine.handshakeFailures.Add(1)
	c.engine.log.Debug("TLS handshake failed", "client", c.RemoteAddr().String(), "error", err)
	var header tls.RecordHeaderError
	if errors.As(err, &header) && isMethod(header.RecordHeader[:]) {
		c.tls, c.lingers = nil, true
		_, _ = io.WriteString(c, answerToPlain) // fails if the client is gone
	}
	_ = c.Close()
	return false
}

// isMethod reports whether bytes are the beginning of a request line.
func isMethod(p []byte) bool {
	for i, b := range p {
		if (b < 'A' || b > 'Z') && (i < 3 || b != ' ' && b != '/') {
			return false
		}
	}
	return true
}

const answerToPlain = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Length: 44\r\nConnection: close\r\n\r\n" +
	"this port is for https: use an https:// URL\n"

// errTLS is the error for a TLS handshake on a port for plain HTTP.
var errTLS = errors.New("this port is for http, without TLS: use an http:// URL")

// handshakeRecord is the first byte of a connection with TLS. No request begins with it.
const handshakeRecord = 0x16

// endTLS tells the client that the connection ends as it should. Without this, clients notice
// that an answer was cut. It doesn't wait.
func (c *connection) endTLS() {
	if c.tls == nil || c.answers.Cut() {
		return
	}
	c.hurries = true
	_ = c.tls.CloseWrite() // fails without a handshake, or if the client is gone
}

// transport is the side of a connection below TLS. It has the deadlines of the connection.
type transport struct{ c *connection }

func (t transport) Read(p []byte) (int, error) {
	n, err := t.c.read(p)
	if t.c.shakesHands && t.c.loop != nil {
		t.c.loop.Enter(t.c.engine.handshakes)
	}
	return n, err
}

func (t transport) Write(p []byte) (int, error)    { return t.c.write(p) }
func (t transport) Close() error                   { return t.c.Conn.Close() }
func (t transport) LocalAddr() net.Addr            { return t.c.LocalAddr() }
func (t transport) RemoteAddr() net.Addr           { return t.c.RemoteAddr() }
func (transport) SetDeadline(time.Time) error      { return nil }
func (transport) SetReadDeadline(time.Time) error  { return nil }
func (transport) SetWriteDeadline(time.Time) error { return nil }

// unseal decrypts the records that were read ahead, as far as they are complete.
func (c *connection) unseal() {
	c.peeks = true
	for c.grow(&c.ahead) {
		start := len(c.ahead)
		n, err := c.tls.Read(c.ahead[start:cap(c.ahead)])
		c.ahead = c.ahead[:start+n]
		if n == 0 || err != nil {
			break // a timeout, after which it can read on, or an error, which the next Read returns
		}
	}
	c.peeks = false
	if len(c.ahead) == 0 {
		c.ahead = nil
	}
}
