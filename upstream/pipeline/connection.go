package pipeline

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"nar-herder/internal/redact"
)

// connection is one connection of a client. The client's mutex protects its fields.
type connection struct {
	client *Client
	conn   net.Conn
	due    time.Time // when reading fails

	sent     int       // requests
	answered int       // of these
	fresh    int       // answers since the connection was last idle
	begun    time.Time // of the time since then
	inFlight []*entry
	held     []held
	ended    bool
}

// held is a response that doesn't show what it answers. It is withheld until all requests that
// were sent before it came are answered in their order: if it was the answer to another, one of
// those shows it.
type held struct {
	entry    *entry
	response *Response
	until    int // answered
}

var (
	errOrder       = redact.Public("it answers in another order")
	errUnsolicited = redact.Public("it sends what is not an answer")
	errMalformed   = redact.Public("its answer is not HTTP/1.1")
	errClosing     = redact.Public("it closes the connection")
)

// wait bounds the time until the next byte, or the end of an answer. The caller holds the mutex.
func (x *connection) wait(timeout time.Duration) {
	x.due = time.Now().Add(timeout)
	_ = x.conn.SetReadDeadline(x.due) // fails on a closed connection, as the next read does
}

// awaitIdle is wait for a connection without requests. The caller holds the mutex.
func (x *connection) awaitIdle() { x.wait(x.client.options.Idle) }

// write sends requests until the connection ends.
func (x *connection) write() {
	w := bufio.NewWriter(x.conn)
	for {
		batch := x.client.take(x)
		if batch == nil {
			return
		}
		_ = x.conn.SetWriteDeadline(time.Now().Add(x.client.options.Timeout))
		for _, e := range batch {
			if e.Request().Write(w) != nil {
				break // so does Flush
			}
		}
		if w.Flush() != nil {
			// What has been answered can still be read. If the server reads nothing, it
			// may send nothing either.
			return
		}
	}
}

// read reads answers until the connection ends.
func (x *connection) read() {
	from := &allowance{conn: x.conn}
	r := bufio.NewReaderSize(from, readBuffer)
	var err error
	for err == nil {
		from.left = maxHead
		err = x.readOne(r, from)
	}
	x.client.end(x, err)
}

// readBuffer is how much is read at once.
const readBuffer = 128 << 10

// readOne reads one answer.
func (x *connection) readOne(r *bufio.Reader, from *allowance) error {
	c := x.client
	if _, err := r.Peek(1); err != nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		if errors.Is(err, os.ErrDeadlineExceeded) && time.Now().Before(x.due) {
			return nil // a request was sent just now
		}
		if len(x.inFlight) == 0 {
			x.ended = true // before another request is sent
		}
		return err
	}
	c.mu.Lock()
	if len(x.inFlight) == 0 {
		x.ended = true
		c.mu.Unlock()
		return errUnsolicited
	}
	e := x.inFlight[0]
	c.mu.Unlock()
	response, closing, err := c.readResponse(r, from, e.Request())
	if err != nil {
		return err
	}
	c.options.Report(nil, 0)
	relation := e.Relate(response)

	c.mu.Lock()
	if relation == Other && len(x.inFlight)+len(x.held) > 1 {
		c.mu.Unlock()
		return errOrder
	}
	x.inFlight = x.inFlight[1:]
	x.answered++
	x.fresh++
	c.barren = 0
	c.raise()
	var ready []held
	if answer := (held{e, response, x.sent}); relation == Unclear {
		x.held = append(x.held, answer)
	} else {
		ready = append(ready, answer)
	}
	for len(x.held) > 0 && x.held[0].until <= x.answered {
		ready = append(ready, x.held[0])
		x.held = x.held[1:]
	}
	if closing == errOld {
		c.limit(1, unlimited)
		closing = nil
	}
	if len(x.inFlight) > 0 {
		x.wait(c.options.Timeout)
	} else {
		x.awaitIdle()
	}
	x.ended = closing != nil
	if c.queue.Len() > 0 || len(x.inFlight) == 0 {
		c.changed.Broadcast()
	}
	c.mu.Unlock()
	for _, h := range ready {
		h.entry.Done(h.response, nil)
	}
	return closing
}

// smallBody is the length of a body up to which there is a buffer before its bytes come.
const smallBody = 64 << 10

// errOld marks an answer with HTTP/1.0 whose connection stays open.
var errOld = errors.New("it answers with HTTP/1.0")

// readResponse reads a response. The second error is why no other can follow, or errOld.
func (c *Client) readResponse(r *bufio.Reader, from *allowance, request *http.Request) (_ *Response, closing, err error) {
	if header, length, ok := readPlainHead(r); ok && length <= c.options.MaxBody {
		from.left = length + maxHead
		answer := &Response{Status: http.StatusOK, Header: header, Body: make([]byte, length)}
		if _, err := io.ReadFull(r, answer.Body); err != nil {
			return nil, nil, from.cause(err)
		}
		return answer, nil, nil
	} else if ok {
		return nil, nil, fmt.Errorf("%w: %d bytes", ErrTooLong, length)
	}
	var response *http.Response
	for {
		response, err = http.ReadResponse(r, request)
		if err != nil {
			return nil, nil, from.cause(err)
		}
		if response.StatusCode == http.StatusSwitchingProtocols {
			return nil, nil, errMalformed
		}
		if response.StatusCode >= 200 {
			break // not one that is followed by the real one
		}
	}
	most := c.options.MaxBody
	if response.ContentLength > int64(most) {
		return nil, nil, fmt.Errorf("%w: %d bytes", ErrTooLong, response.ContentLength)
	}
	from.left = most + maxHead
	answer := &Response{Status: response.StatusCode, Header: response.Header}
	body := io.LimitReader(response.Body, int64(most)+1)
	var length int64
	if answer.Status == http.StatusOK {
		if response.ContentLength >= 0 && response.ContentLength <= smallBody {
			answer.Body = make([]byte, response.ContentLength)
			_, err = io.ReadFull(body, answer.Body)
		} else {
			answer.Body, err = io.ReadAll(body)
		}
		length = int64(len(answer.Body))
	} else {
		length, err = io.Copy(io.Discard, body)
	}
	switch {
	case length > int64(most):
		return nil, nil, fmt.Errorf("%w: over %d bytes", ErrTooLong, most)
	case err != nil:
		return nil, nil, from.cause(err)
	case response.Close:
		closing = errClosing
	case !response.ProtoAtLeast(1, 1):
		closing = errOld
	}
	return answer, closing, nil
}

// cause returns why an answer can't be read: the end of the connection, a bound, or else that it
// is malformed.
func (a *allowance) cause(err error) error {
	if a.err != nil {
		return a.err
	}
	return fmt.Errorf("%w: %w", errMalformed, err)
}

// end closes a connection, and sends what it leaves unanswered on others.
func (c *Client) end(x *connection, err error) {
	x.conn.Close()
	c.mu.Lock()
	x.ended = true
	delete(c.connections, x)
	if c.closed {
		err = ErrClosed
	} else if errors.Is(err, os.ErrDeadlineExceeded) {
		err = ErrSilent
	} else if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = fmt.Errorf("it closes the connection before its answer: %w", err)
	}
	var again []*entry
	for _, h := range x.held {
		again = append(again, h.entry)
	}
	var failed []*entry
	isFailure := false // of the server, as a whole
	if len(x.inFlight) > 0 {
		n := c.judge(x, err)
		failed, again = x.inFlight[:n:n], append(again, x.inFlight[n:]...)
		isFailure = x.fresh == 0 && err == ErrSilent
	}
	if x.answered == 0 && x.sent <= 1 && err != ErrSilent { // more may have been too many
		c.barren++
	}
	c.queue.Push(again...)
	if c.closed || c.barren >= maxTries && c.dials+len(c.connections) == 0 {
		isFailure = isFailure || c.queue.Len() > 0 && !c.closed
		failed = append(failed, c.empty()...)
	}
	c.grow()
	c.changed.Broadcast()
	c.mu.Unlock()
	if isFailure {
		c.options.Report(err, time.Since(x.begun))
	}
	fail(failed, err)
}

// judge learns from the end of a connection with requests in flight. It returns how many of
// these fail. The caller holds c.mu.
func (c *Client) judge(x *connection, err error) (failing int) {
	switch {
	case err == ErrSilent && x.fresh == 0:
		return len(x.inFlight)
	case err == ErrSilent, errors.Is(err, ErrTooLong):
		if x.answered == 0 {
			c.limit(1, unlimited)
		}
		return 1 // the other requests may have better luck
	case errors.Is(err, errOrder):
		c.limit(1, unlimited)
		return 0
	case errors.Is(err, errMalformed):
		c.limit(1, 1)
		if x.sent == 1 {
			return 1
		}
	case x.fresh > 0: // it closes after that many
		c.limit(unlimited, x.answered)
		return 0
	case x.answered == 0:
		c.limit(1, unlimited)
	}
	// A request that was alone may be the cause, unless the server has closed the idle
	// connection.
	if len(x.inFlight) == 1 {
		x.inFlight[0].tries++
	}
	if x.inFlight[0].tries >= maxTries {
		return 1
	}
	return 0
}

// allowance is a connection of which so many bytes may be read.
type allowance struct {
	conn net.Conn
	left int
	err  error // of the last Read
}

func (a *allowance) Read(p []byte) (n int, err error) {
	if a.left <= 0 {
		a.err = ErrTooLong
		return 0, a.err
	}
	n, a.err = a.conn.Read(p[:min(len(p), a.left)])
	a.left -= n
	return n, a.err
}
