package faultproxy

import (
	"bytes"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// hopHeaders are hop-by-hop headers, which are not forwarded.
var hopHeaders = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Te", "Trailer", "Transfer-Encoding", "Upgrade"}

// page is the page of a captive portal.
const page = "<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body><h1>Please log in</h1></body></html>\n"

func (p *Proxy) serve(w http.ResponseWriter, r *http.Request) {
	p.count(func(c *Counts) { c.Requests++ })
	fault := p.pick(r)
	switch fault.Kind {
	case CutHead:
		p.happened(CutHead)
		cut()
	case Status, HTML:
		p.happened(fault.Kind)
		status := http.StatusOK
		if fault.Kind == Status {
			if status = fault.Status; status == 0 {
				status = http.StatusServiceUnavailable
			}
		}
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, page) // the client may have left
		return
	case Stale:
		if old := p.memory.recall(r, fault.At); old != nil {
			p.happened(Stale)
			copyHeader(w.Header(), old.header)
			w.WriteHeader(old.status)
			_, _ = w.Write(old.body)
			return
		}
	case StallHead:
		p.happened(StallHead)
		if !p.stall(r) {
			cut()
		}
	}
	response, err := p.transport.RoundTrip(p.outgoing(r))
	if err != nil {
		p.count(func(c *Counts) { c.Unreachable++ })
		cut()
	}
	defer response.Body.Close()
	p.answer(w, r, response, fault)
}

// outgoing returns the request to the target, with the path verbatim.
func (p *Proxy) outgoing(r *http.Request) *http.Request {
	out := r.Clone(r.Context())
	path, _, _ := strings.Cut(r.RequestURI, "?")
	out.URL = &url.URL{Scheme: p.target.Scheme, Host: p.target.Host, Opaque: p.target.EscapedPath() + path, RawQuery: r.URL.RawQuery}
	out.Host, out.RequestURI = "", ""
	for _, name := range hopHeaders {
		out.Header.Del(name)
	}
	if out.Header.Get("User-Agent") == "" {
		out.Header.Set("User-Agent", "") // otherwise the transport sets its own
	}
	return out
}

func copyHeader(to, from http.Header) {
	for name, values := range from {
		if !slices.Contains(hopHeaders, name) {
			to[name] = slices.Clone(values)
		}
	}
	if _, typed := to["Content-Type"]; !typed {
		to["Content-Type"] = nil // otherwise the server guesses
	}
}

// answer sends an answer back with the fault.
func (p *Proxy) answer(w http.ResponseWriter, r *http.Request, response *http.Response, fault Fault) {
	length := response.ContentLength // -1 if unknown
	strike := fault.After
	if length >= 0 {
		strike = min(int64(fault.At*float64(length)), length-1)
	}
	if (r.Method == http.MethodHead || length == 0) && fault.Kind != StallHead {
		fault = Fault{} // there is no body to damage
	}
	copyHeader(w.Header(), response.Header)
	switch fault.Kind {
	case ShortLength:
		if length < 0 { // a stream has no Content-Length
			fault.Kind = ShortChunked
			w.Header().Del("Content-Length")
			break
		}
		w.Header().Set("Content-Length", strconv.FormatInt(strike, 10))
	case ShortChunked:
		w.Header().Del("Content-Length")
	}
	w.WriteHeader(response.StatusCode)
	b := &body{p: p, w: w, r: r, from: response.Body, stream: length < 0}
	if fault.Kind == None || fault.Kind == Stale || fault.Kind == StallHead {
		b.kept = p.memory.keeps(r, response)
		b.pass(-1)
		if fault.Kind != StallHead { // counted before
			p.happened(None)
		}
		p.memory.remember(r, response, b.kept)
		return
	}
	if !b.pass(strike) && fault.Kind != CutBody {
		p.happened(None) // the stream ended before
		return
	}
	switch fault.Kind {
	case CutBody:
		p.happened(CutBody)
		b.flush() // the bytes before the cut must arrive
		cut()
	case ShortLength, ShortChunked:
		p.happened(fault.Kind)
		b.flush()
		return
	case StallBody:
		p.happened(StallBody)
		b.flush()
		if !p.stall(r) {
			cut()
		}
	case FlipBit:
		p.happened(b.flip(fault.Bit))
	}
	b.pass(-1)
}

// body is a body that is being forwarded.
type body struct {
	p      *Proxy
	w      http.ResponseWriter
	r      *http.Request
	from   io.Reader
	stream bool          // of unknown length: each piece is flushed
	kept   *bytes.Buffer // a copy for the memory; nil for none
}

// pass forwards that many bytes, or all if count is negative. It returns false if there were
// fewer. If the target cuts its connection, it cuts the client's.
func (b *body) pass(count int64) bool {
	buffer := make([]byte, 32<<10)
	for count != 0 {
		piece := buffer
		if count > 0 {
			piece = buffer[:min(count, int64(len(buffer)))]
		}
		n, err := b.from.Read(piece)
		if n > 0 {
			b.write(piece[:n])
		}
		if count > 0 {
			count -= int64(n)
		}
		if err == io.EOF {
			return count <= 0
		}
		if err != nil {
			b.fail()
		}
	}
	return true
}

func (b *body) write(piece []byte) {
	if b.kept != nil {
		b.kept.Write(piece)
	}
	if _, err := b.w.Write(piece); err != nil {
		cut() // the client has left
	}
	if b.stream {
		b.flush()
	}
}

func (b *body) flush() { _ = http.NewResponseController(b.w).Flush() }

// fail cuts the connection because the target did.
func (b *body) fail() {
	if b.r.Context().Err() == nil {
		b.p.count(func(c *Counts) { c.Unreachable++ })
	}
	b.flush()
	cut()
}

// flip forwards one byte with a flipped bit. It returns None at EOF.
func (b *body) flip(bit int) Kind {
	var one [1]byte
	switch _, err := io.ReadFull(b.from, one[:]); err {
	case nil:
	case io.EOF:
		return None
	default:
		b.fail()
	}
	one[0] ^= 1 << (bit & 7)
	b.write(one[:])
	return FlipBit
}
