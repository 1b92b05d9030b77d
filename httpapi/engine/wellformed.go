package engine

import (
	"bytes"
	"errors"

	"github.com/valyala/fasthttp"
)

// Violation returns the error for a request that fasthttp accepts but RFC 9112 forbids, or 0.
// The connection must be closed after it.
func Violation(ctx *fasthttp.RequestCtx) (status int, message string) {
	header := &ctx.Request.Header
	switch {
	case !header.IsHTTP11() && !bytes.HasPrefix(header.Protocol(), []byte("HTTP/1.")):
		return fasthttp.StatusHTTPVersionNotSupported, "only HTTP/1.1 and HTTP/1.0 are answered here"
	case bytes.IndexByte(header.Host(), '@') >= 0:
		return fasthttp.StatusBadRequest, "the Host header is not a host"
	case header.RequestURI()[0] != '/' && !hasAuthority(header.RequestURI()):
		return fasthttp.StatusBadRequest, "the URL has no host"
	}
	return 0, ""
}

// hadBody is a field that hideBody adds to the head of a request with a body. Clients can't
// send it: fasthttp refuses such names.
var hadBody = []byte("\x00body")

// hideBody is called with the head of each request. It hides the body from fasthttp,
// which would reserve as much memory as the head announces and then wait for the body.
// The connection is closed after the answer, as the body follows on it.
func hideBody(header *fasthttp.RequestHeader) (config fasthttp.RequestConfig) {
	if n := header.ContentLength(); n > 0 || n == -1 { // -1 for chunks
		header.SetContentLength(0)
		header.Del(fasthttp.HeaderExpect)
		header.SetConnectionClose()
		header.SetCanonical(hadBody, []byte("1"))
	}
	return config
}

// HasBody reports whether hideBody has hidden a body.
func HasBody(ctx *fasthttp.RequestCtx) bool {
	header := &ctx.Request.Header
	return header.ConnectionClose() && header.PeekCanonical(hadBody) != nil
}

// hasAuthority reports whether a target in absolute form has a host, as RFC 9110,
// section 4.2.1, demands.
func hasAuthority(target []byte) bool {
	_, authority, isURL := bytes.Cut(target, []byte("://"))
	return !isURL || len(authority) > 0 && bytes.IndexByte([]byte("/?#:"), authority[0]) < 0
}

// errBareLines is the error for a request with bare line feeds. fasthttp would wait for the
// end of its head.
var errBareLines = errors.New("the lines of a request end with a carriage return and a line feed")

// endsBare reports whether the bytes end with an empty line that fasthttp does not accept as
// the end of a head, because a line feed lacks its carriage return.
func endsBare(p []byte) bool {
	n := len(p)
	switch {
	case n < 4 || p[n-1] != '\n':
		return false
	case p[n-2] == '\n':
		return true
	}
	return p[n-2] == '\r' && p[n-3] == '\n' && p[n-4] != '\r'
}

// readBare handles bytes that end so. RFC 9112, section 2.2, lets the server accept bare
// line feeds, but a proxy in front might see other requests than the server does. So
// they are accepted only if the client has sent a single request and nothing before it.
// Otherwise the next Read fails with errBareLines, unless the bytes contain the end of a head,
// as they may then be part of a body.
func (c *connection) readBare(p []byte, n int, isFirst bool) int {
	chunk := p[:n]
	switch {
	case isFirst && bytes.IndexByte(chunk, '\r') < 0 && bytes.Index(chunk, []byte("\n\n")) == n-2 && !mayHaveBody(chunk):
		lines := bytes.ReplaceAll(chunk, []byte("\n"), []byte("\r\n"))
		n = copy(p, lines)
		c.ahead = lines[n:] // which was empty before
	case len(bytes.TrimRight(chunk, "\r\n")) > 0 && !bytes.Contains(chunk, []byte("\r\n\r\n")):
		c.failure = errBareLines
	}
	return n
}

// mayHaveBody reports whether a body could follow after a head.
func mayHaveBody(head []byte) bool {
	head = bytes.ToLower(head)
	return bytes.Contains(head, []byte("content-length")) || bytes.Contains(head, []byte("transfer-encoding"))
}
