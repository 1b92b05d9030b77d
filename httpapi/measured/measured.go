// Package measured follows the answers of a connection until they are written.
package measured

import "time"

// Method is the method of a request.
type Method uint8

const (
	GET Method = iota
	HEAD
	OtherMethod
)

// Answer is an answer that was written to its connection, or that could not be.
//
// The duration begins with the first byte of the request, and ends when the connection has
// taken the last byte of the answer. Answers to pipelined requests are written together, and
// end together.
type Answer struct {
	// Kind is that of Count answers. Answers are only combined if they have no Request and
	// were written at once.
	Kind
	Count int
	// Request is what [Pending.Add] got; nil unless requests are logged.
	Request *Request
	// Cut is whether an answer is incomplete.
	Cut bool
	// Sent is how many bytes of the bodies the connection has taken, without heads. If the
	// connection breaks while it takes several short answers, heads may be counted.
	Sent int64
	// FirstByte is the time until the first byte of the answer was written, and Duration
	// until the last.
	FirstByte, Duration time.Duration

	begun time.Time
	first time.Time // when the first byte was written; zero for not yet
	open  bool      // the body is a stream that has not ended
}

// Kind is what metrics distinguish.
type Kind struct {
	Route, Status uint16
	Method        Method
	// Hit is whether the answer was in memory.
	Hit bool
}

// Request is what an access log needs of a request.
type Request struct {
	Time                                                              time.Time // of the first byte
	Client, Method, Target, Protocol, Host, Range, Referer, UserAgent string
	// Peer is the client with its port, if it has connected directly.
	Peer string
}

// Sink receives finished answers.
type Sink interface {
	// Finished is called in the coroutine of the connection, and must not wait. The answers are
	// valid until it returns.
	Finished(answers []Answer)
}

// Pending are the answers of a connection that are not written yet. Its methods may not be
// called at the same time.
//
// The server adds an answer before it writes it to a buffer. Write flushes all of the buffer,
// which then contains all answers before the last and an unknown part of that.
type Pending struct {
	sink    Sink
	answers []Answer
	room    [2]Answer
	// last is the length of the body of the last answer.
	last int64
	// written is how many elements of answers were written, and touched whether a part of
	// the next one was, at a time that [Pending.Tick] sets.
	written int
	touched bool
	at      time.Time
	// failed is whether a write has failed, after taking some bytes.
	failed bool
	some   int64
	// cut is whether an answer has ended too early.
	cut bool
}

// Combine adds an answer with a body of the length, which is not a stream, if it can be combined
// with the last. They begin at different times within the same read, which makes no difference:
// they wait for each other.
func (p *Pending) Combine(kind Kind, length int64) bool {
	n := len(p.answers) - 1
	if n < 0 || p.touched {
		return false
	}
	last := &p.answers[n]
	if last.Kind != kind || last.Request != nil || last.open || !last.first.IsZero() {
		return false
	}
	last.Count++
	last.Sent += length
	p.last = length
	return true
}

// Add adds an answer, which will be written next. length is that of its body, which is
// 0 if the body is a stream. Then open is true, and the stream calls [Pending.Copied] or
// [Pending.Ended].
func (p *Pending) Add(sink Sink, kind Kind, request *Request, begun time.Time, length int64, open bool) {
	p.sink = sink
	if p.answers == nil {
		p.answers = p.room[:0]
	}
	p.answers = append(p.answers, Answer{Kind: kind, Count: 1, Request: request, Sent: length, begun: begun, open: open})
	p.last = length
}

// Wrote records that the buffer was flushed, and reports whether [Pending.Tick] must be called
// at once. Otherwise it must be called soon.
func (p *Pending) Wrote() (now bool) {
	n := len(p.answers)
	if n == 0 {
		return false
	}
	last := &p.answers[n-1]
	if last.Count > 1 { // the last of them may not be in the buffer as a whole
		one := *last
		one.Count, one.Sent = 1, p.last
		last.Count, last.Sent = last.Count-1, last.Sent-p.last
		p.answers = append(p.answers, one)
		last = &p.answers[n]
		n++
	}
	p.written, p.touched = n-1, true
	return last.open && last.first.IsZero()
}

// Waits reports whether Tick must be called.
func (p *Pending) Waits() bool { return p.touched }

// Tick sets the time of the last Write.
func (p *Pending) Tick(now time.Time) {
	if !p.touched {
		return
	}
	p.at = now
	if last := &p.answers[p.written]; last.first.IsZero() {
		last.first = now
	}
	p.finish(p.written)
	p.written, p.touched = 0, false
}

// finish passes the first n elements to the sink.
func (p *Pending) finish(n int) {
	if n == 0 {
		return
	}
	for i := range p.answers[:n] {
		a := &p.answers[i]
		if a.first.IsZero() {
			a.first = p.at
		}
		a.FirstByte, a.Duration = max(0, a.first.Sub(a.begun)), max(0, p.at.Sub(a.begun))
	}
	p.sink.Finished(p.answers[:n])
	rest := copy(p.answers, p.answers[n:])
	clear(p.answers[rest:])
	p.answers = p.answers[:rest]
}

// Settle is called when all answers are written.
func (p *Pending) Settle() {
	if len(p.answers) > 0 {
		p.finish(len(p.answers))
		if cap(p.answers) > len(p.room) {
			p.answers = nil
		}
	}
	p.written, p.touched = 0, false
}

// Copied records that n more bytes of the last answer's stream were passed on, and whether
// these are all.
func (p *Pending) Copied(n int64, all bool) {
	if i := len(p.answers) - 1; i >= 0 && p.answers[i].open {
		p.answers[i].Sent += n
		p.answers[i].open = !all
	}
}

// Ended finishes the answer with a stream that bypasses the buffer.
func (p *Pending) Ended(now time.Time, sent int64, all bool) {
	if i := len(p.answers) - 1; i >= 0 && p.answers[i].open {
		p.answers[i].Sent, p.answers[i].Cut = sent, !all
		p.cut = p.cut || !all
		p.touched, p.written = true, i
		p.Tick(now)
		p.Settle()
	}
}

// Cut reports whether an answer is incomplete, so that the connection must not seem to end as it
// should.
func (p *Pending) Cut() bool {
	n := len(p.answers)
	return p.cut || p.failed || n > 0 && p.answers[n-1].open
}

// Failed records that a write has failed after n bytes. No further answers are written.
func (p *Pending) Failed(n int) { p.failed, p.some = true, int64(n) }

// Close finishes all answers when the connection is closed.
func (p *Pending) Close(now time.Time) {
	if len(p.answers) == 0 {
		return
	}
	if p.touched {
		p.Tick(now)
	}
	for i := range p.answers {
		a := &p.answers[i]
		switch {
		case a.open: // the stream has counted the bytes
			a.Cut = true
		case p.failed:
			a.Cut = true
			a.Sent = min(a.Sent, p.some)
			p.some -= a.Sent
		case a.first.IsZero(): // still in the buffer
			a.Cut, a.Sent = true, 0
		}
	}
	p.at = now
	p.Settle()
}
