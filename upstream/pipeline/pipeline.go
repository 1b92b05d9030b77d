// Package pipeline sends GET requests to an HTTP/1.1 server over a few connections, many on each
// before the first answer.
//
// A server that can't do that is sent fewer at a time: it closes connections, answers with
// HTTP/1.0, in another order, or with bytes that belong to no answer. What it did not answer is
// sent again.
package pipeline

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"

	"nar-herder/internal/redact"
	"nar-herder/upstream/turns"
)

var (
	// ErrSilent reports an answer that did not come in time.
	ErrSilent = redact.Public("it did not answer in time")
	// ErrTooLong reports an answer beyond the bounds.
	ErrTooLong = redact.Public("its answer is too long")
	// ErrClosed reports a client that was closed.
	ErrClosed = errors.New("the server stops")
)

// Response is an answer.
type Response struct {
	Status int
	// Header may have only Cache-Control and Age if the status is 200.
	Header http.Header
	Body   []byte // of status 200 only
}

// Relation says whether a response answers a request.
type Relation int

const (
	// Unclear is a response that doesn't show what it answers.
	Unclear Relation = iota
	// Own is a response to the request.
	Own
	// Other is a response to another request.
	Other
)

// Call is a request with its answer.
type Call interface {
	// Context ends when the answer isn't needed any more.
	Context() context.Context
	// Place is that among the requests that wait.
	Place() turns.Place
	// Request is a GET request. It may be sent several times.
	Request() *http.Request
	// Relate looks at a response before Done, which may not follow.
	Relate(*Response) Relation
	// Done receives the response, or the reason why there is none. It is called once, maybe
	// after the context has ended.
	Done(*Response, error)
}

// Options are those of a [Client].
type Options struct {
	// Dial connects to the server. A [Refusal] is the answer to all requests.
	Dial func(context.Context) (net.Conn, error)
	// Connections is how many connections there are at most, and Depth how many requests are
	// in flight on each.
	Connections, Depth int
	// Timeout is how long connecting may take, and each answer after the one before it; Idle
	// how long an unused connection stays open.
	Timeout, Idle time.Duration
	// MaxBody bounds the body of an answer.
	MaxBody int
	// Report receives nil for each answer, and for a server that doesn't answer at all the
	// error and how long that took.
	Report func(err error, took time.Duration)
}

// Refusal is an error of [Options.Dial] that is not a failure of the server.
type Refusal struct{ Err error }

func (r *Refusal) Error() string { return r.Err.Error() }

func (r *Refusal) Unwrap() error { return r.Err }

const (
	// maxHead bounds the status line and headers of an answer.
	maxHead = 64 << 10
	// maxTries is how often a request is sent that ended its connection, and how many
	// connections in a row may end without an answer.
	maxTries = 3
	// usualShare is how many requests one connection gets before another is opened.
	usualShare = 32
	// recovery is how many answers must come before more requests are sent at a time again.
	recovery = 64
	// unlimited is how many requests on one connection are as good as any number.
	unlimited = 1 << 16
)

// Client sends requests to one server. Its methods may be called from several goroutines at
// once.
type Client struct {
	options Options
	dialing context.Context // ends when the client is closed
	cancel  context.CancelFunc

	mu          sync.Mutex
	changed     *sync.Cond // of mu: the queue, the limits, or the end of a connection
	queue       turns.Queue[*entry]
	connections map[*connection]bool
	dials       int // connections that are being made
	barren      int // connections in a row that ended before their first answer
	closed      bool
	// The server takes depth requests at a time, and total on one connection. credit counts
	// the answers since it last showed a limit.
	depth, total, credit int
}

// entry is a call in the queue or in flight.
type entry struct {
	Call
	tries int // connections that it may have ended
}

// New makes a client, without connecting.
func New(options Options) *Client {
	c := &Client{options: options, connections: make(map[*connection]bool), depth: options.Depth, total: unlimited}
	c.dialing, c.cancel = context.WithCancel(context.Background())
	c.changed = sync.NewCond(&c.mu)
	return c
}

// Send sends requests, and returns before the answers.
func (c *Client) Send(calls ...Call) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		for _, call := range calls {
			call.Done(nil, ErrClosed)
		}
		return
	}
	for _, call := range calls {
		c.queue.Push(&entry{Call: call})
	}
	c.grow()
	c.changed.Broadcast()
	c.mu.Unlock()
}

// Close closes all connections. Requests without an answer fail with [ErrClosed].
func (c *Client) Close() {
	c.mu.Lock()
	c.closed = true
	unsent := c.empty()
	for x := range c.connections {
		x.conn.Close()
	}
	c.mu.Unlock()
	c.cancel()
	fail(unsent, ErrClosed)
}

func fail(entries []*entry, err error) {
	for _, e := range entries {
		e.Done(nil, err)
	}
}

// grow opens connections for the queue. The caller holds c.mu.
func (c *Client) grow() {
	idle := c.dials
	for x := range c.connections {
		if len(x.inFlight) == 0 && x.sent < c.total {
			idle++
		}
	}
	share, most := min(usualShare, c.depth, c.total), c.options.Connections
	if c.barren > 0 {
		most = 1
	}
	for idle*share < c.queue.Len() && c.dials+len(c.connections) < most {
		c.dials++
		idle++
		go c.connect()
	}
}

// connect opens a connection and reads its answers until it ends.
func (c *Client) connect() {
	ctx, cancel := context.WithTimeoutCause(c.dialing, c.options.Timeout, ErrSilent)
	defer cancel()
	begun := time.Now()
	conn, err := c.options.Dial(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	c.mu.Lock()
	c.dials--
	if c.closed && err == nil {
		conn.Close()
		err = ErrClosed
	}
	if err == nil {
		x := &connection{client: c, conn: conn}
		c.connections[x] = true
		x.awaitIdle()
		c.mu.Unlock()
		go x.write()
		x.read()
		return
	}
	// The other connections are enough, unless there is none.
	var refusal *Refusal
	isRefusal := errors.As(err, &refusal)
	if !isRefusal && c.dials+len(c.connections) > 0 {
		c.mu.Unlock()
		return
	}
	unsent := c.empty()
	closed := c.closed
	c.mu.Unlock()
	if !isRefusal && !closed {
		c.options.Report(err, time.Since(begun))
	}
	fail(unsent, err)
}

// take waits for calls to send on a connection; nil when it has ended.
func (c *Client) take(x *connection) []*entry {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !x.ended {
		if x.sent >= c.total && len(x.inFlight) == 0 {
			x.ended = true
			x.conn.Close() // so that it is replaced
			return nil
		}
		room := min(c.depth-len(x.inFlight), c.total-x.sent)
		share := max(usualShare, c.queue.Len()/len(c.connections))
		if batch := c.next(min(room, share)); len(batch) > 0 {
			x.sent += len(batch)
			if len(x.inFlight) == 0 {
				x.fresh, x.begun = 0, time.Now()
				x.wait(c.options.Timeout)
			}
			x.inFlight = append(x.inFlight, batch...)
			return batch
		}
		c.changed.Wait()
	}
	return nil
}

// next removes up to n calls from the queue, and those before them that nobody waits for. The caller
// holds c.mu.
func (c *Client) next(n int) (batch []*entry) {
	var unneeded []*entry
	for len(batch) < n {
		e, ok := c.queue.Pop()
		if !ok {
			break
		}
		if e.Context().Err() == nil {
			batch = append(batch, e)
		} else {
			unneeded = append(unneeded, e)
		}
	}
	if len(unneeded) > 0 {
		go func() {
			for _, e := range unneeded {
				e.Done(nil, context.Cause(e.Context()))
			}
		}()
	}
	return batch
}

// empty removes all calls from the queue. The caller holds c.mu.
func (c *Client) empty() (all []*entry) {
	for {
		e, ok := c.queue.Pop()
		if !ok {
			return all
		}
		all = append(all, e)
	}
}

// limit notes that the server takes fewer requests at a time, or on one connection. The caller
// holds c.mu.
func (c *Client) limit(depth, total int) {
	c.depth, c.total, c.credit = max(1, min(c.depth, depth)), max(1, min(c.total, total)), 0
}

// raise raises the limits after enough answers. The caller holds c.mu.
func (c *Client) raise() {
	if c.depth == c.options.Depth && c.total == unlimited {
		return
	}
	enough := recovery
	if c.total != unlimited {
		enough = max(recovery, 8*c.total) // each attempt may waste as many requests
	}
	if c.credit++; c.credit >= enough {
		c.depth, c.total, c.credit = min(2*c.depth, c.options.Depth), min(2*c.total, unlimited), 0
	}
}
