package engine

import (
	"crypto/tls"
	"errors"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/engine/admission"
	"nar-herder/httpapi/measured"
	"nar-herder/internal/eventloop"
	"nar-herder/internal/rawio"
)

// connection is the connection of one client. It adds to a net.Conn:
//
//   - An answer has no deadline as long as the client reads some of it.
//   - While the client reads nothing, its requests are read ahead. The client of
//     Guix writes a thousand of them before it reads the first answer, which would be
//     a deadlock otherwise.
//   - Read deadlines, which are set twice per request, reach the system only
//     when they have moved by more than a second.
type connection struct {
	net.Conn
	member admission.Member
	engine *Engine
	loop   *eventloop.Conn // nil if Conn is not a socket
	raw    syscall.RawConn // of loop
	tls    *tls.Conn       // nil without TLS; over transport

	// shakesHands is whether the handshake of TLS is in progress, peeks whether reads below
	// TLS don't wait, and hurries whether writes don't wait for the client.
	shakesHands, peeks, hurries bool

	// ahead are bytes read while writing, and sealed are records of TLS that are not decrypted
	// yet.
	ahead, sealed []byte
	// recent is the end of what Read has returned last, and seen the length of the beginning
	// of ahead: as much as Ahead has not returned, or has. fasthttp's buffer has recent until
	// the next Read.
	recent []byte
	seen   int
	// lingers says that the client may still be sending, so Close must not reset.
	lingers bool

	deadline, deadlineSet time.Time

	// begun is when the first byte was read, or zero, and failure the error of the next Read.
	begun   time.Time
	failure error
	// answers are those that are not written yet.
	answers measured.Pending

	// fileFollows says that the next Write is the head of an answer with a fileBody, and
	// shares a segment with it.
	fileFollows bool
	// holds says that Write collects bytes in held, up to the head of an answer with a
	// copiedBody, and head and body are written in one system call.
	holds bool
	held  []byte

	// pending, written and writeErr are the arguments and results of tryWrite, a method
	// value that is allocated once.
	tryWrite func(fd uintptr) bool
	pending  []byte
	written  int
	writeErr error
}

func (c *connection) Close() error {
	c.member.Release()
	c.endTLS()
	if c.lingers {
		c.linger()
	}
	c.member.Remove()
	err := c.Conn.Close()
	c.answers.Close(time.Now())
	return err
}

// SetReadDeadline implements [net.Conn]. fasthttp sets a deadline when an answer is in its
// buffer, which may have been flushed, and another when the next request has begun. These
// times are known without asking the system again.
func (c *connection) SetReadDeadline(t time.Time) error {
	if c.answers.Waits() {
		c.answers.Tick(t.Add(-c.engine.Server.IdleTimeout))
	}
	c.deadline = t
	return nil
}

// next returns bytes that were read ahead, or reads.
func (c *connection) next(p []byte) (n int, err error) {
	if len(c.ahead) > 0 {
		n := c.take(&c.ahead, p)
		c.recent, c.seen = p[min(n, c.seen):n], max(0, c.seen-n)
		return n, nil
	}
	if c.tls != nil {
		n, err = c.tls.Read(p)
	} else {
		n, err = c.read(p)
	}
	c.recent = p[:n]
	return n, err
}

// take moves bytes out of a buffer with something that was read ahead.
func (c *connection) take(from *[]byte, p []byte) int {
	n := copy(p, *from)
	if *from = (*from)[n:]; len(*from) == 0 {
		*from = nil
		if len(c.ahead)+len(c.sealed) == 0 {
			c.member.Release()
		}
	}
	return n
}

func (c *connection) read(p []byte) (int, error) {
	if len(c.sealed) > 0 {
		return c.take(&c.sealed, p), nil
	}
	if c.peeks {
		return 0, os.ErrDeadlineExceeded
	}
	if moved := c.deadline.Sub(c.deadlineSet); moved < -time.Second || moved > time.Second {
		if err := c.Conn.SetReadDeadline(c.deadline); err != nil {
			return 0, err
		}
		c.deadlineSet = c.deadline
	}
	if c.engine.draining.Load() {
		c.endWhenQuiet()
	}
	if c.engine.ending.Load() { // checked last, as endAll sets another deadline
		return 0, net.ErrClosed
	}
	return c.Conn.Read(p)
}

// Write implements [net.Conn].
func (c *connection) Write(p []byte) (n int, err error) {
	switch {
	case c.holds:
		c.held = append(c.held, p...)
		return len(p), nil
	case c.tls != nil:
		n, err = c.tls.Write(p)
	default:
		n, err = c.write(p)
	}
	c.wrote(n, err)
	return n, err
}

// write first tries without waiting, which suffices for most answers.
func (c *connection) write(p []byte) (int, error) {
	n := 0
	if c.raw != nil {
		c.written, c.writeErr = 0, nil
		c.pending = p
		err := c.raw.Write(c.tryWrite)
		c.pending, c.fileFollows = nil, false
		if n = c.written; err == nil {
			err = c.writeErr
		}
		if err == nil && n < len(p) && c.hurries {
			err = os.ErrDeadlineExceeded
		}
		if err != nil || n == len(p) {
			return n, err
		}
	}
	m, err := c.writeSlowly(p[n:])
	return n + m, err
}

func (c *connection) wrote(n int, err error) {
	if err != nil {
		c.answers.Failed(n)
	} else if c.answers.Wrote() {
		c.answers.Tick(time.Now())
	}
}

// writeOnce is called with the file descriptor.
func (c *connection) writeOnce(fd uintptr) bool {
	for c.written < len(c.pending) {
		var n int
		var err error
		p := c.pending[c.written:]
		if c.fileFollows {
			n, err = rawio.WriteMore(fd, p)
		} else {
			n, err = rawio.Write(fd, p)
		}
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return true
		case err != nil:
			c.writeErr = os.NewSyscallError("write", err)
			return true
		}
		c.written += n
	}
	return true
}

// writeSlowly writes to a client that does not read fast enough.
func (c *connection) writeSlowly(p []byte) (written int, err error) {
	_, err = c.slowly(func() (int64, error) {
		n, err := c.Conn.Write(p[written:])
		written += n
		return int64(n), err
	})
	return written, err
}

// slowly calls send until it has sent all, or the client has read nothing for
// ProgressTimeout. Meanwhile, it reads requests ahead, with growing intervals.
func (c *connection) slowly(send func() (int64, error)) (total int64, err error) {
	defer func() {
		if err == nil {
			err = c.Conn.SetWriteDeadline(time.Time{})
		}
	}()
	progress := time.Now()
	c.member.StalledSince(progress)
	defer c.member.StalledSince(time.Time{})
	for wait := time.Millisecond; ; wait = min(2*wait, time.Second) {
		if err := c.Conn.SetWriteDeadline(time.Now().Add(wait)); err != nil {
			return total, err
		}
		n, err := send()
		total += n
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return total, err
		}
		if n > 0 {
			progress = time.Now()
			c.member.StalledSince(progress)
		} else if time.Since(progress) > c.engine.ProgressTimeout {
			return total, err
		}
		if c.readAhead() {
			wait = time.Millisecond
		}
	}
}

// readAhead reads what the client has sent, without waiting, and reports whether there was
// anything.
func (c *connection) readAhead() (some bool) {
	if c.raw == nil {
		return false
	}
	// The deadline of the last request may have passed while its answer waits.
	if !c.deadlineSet.IsZero() {
		if err := c.Conn.SetReadDeadline(time.Time{}); err != nil {
			return false
		}
		c.deadlineSet = time.Time{}
	}
	buffer := &c.ahead
	if c.tls != nil {
		buffer = &c.sealed
	}
	_ = c.raw.Read(func(fd uintptr) bool {
		for c.grow(buffer) {
			start := len(*buffer)
			n, _ := rawio.Read(fd, (*buffer)[start:cap(*buffer)])
			if n == 0 {
				break // no data, the end, or an error, which the next Read returns
			}
			*buffer = (*buffer)[:start+n]
			some = true
		}
		return true
	})
	return some
}

// grow makes room in a buffer, and reports whether there is some within the limits.
func (c *connection) grow(buffer *[]byte) bool {
	if len(*buffer) >= admission.MaxAhead {
		return false
	}
	if cap(*buffer)-len(*buffer) < 4096 {
		others := cap(c.ahead) + cap(c.sealed) - cap(*buffer)
		size := min(max(2*cap(*buffer), 16<<10), admission.MaxAhead+4096)
		if !c.member.Reserve(int64(size + others)) {
			return false
		}
		grown := make([]byte, len(*buffer), size)
		copy(grown, *buffer)
		*buffer = grown
	}
	return true
}

// leaveLoop continues outside the event loop until the answer is written, so that other
// connections don't wait for this one.
func (c *connection) leaveLoop() {
	if c.loop != nil {
		c.loop.Leave()
	}
}

// LeaveLoop continues the request outside the event loop. Call it before work that may take
// long.
func LeaveLoop(ctx *fasthttp.RequestCtx) {
	if c, ok := ctx.Conn().(*connection); ok {
		c.leaveLoop()
	}
}

// Enter waits until a pool has room for the request. Call it before work that takes a short
// time, such as a query of the index.
func Enter(ctx *fasthttp.RequestCtx, pool *eventloop.Pool) {
	if c, ok := ctx.Conn().(*connection); ok && c.loop != nil {
		c.loop.Enter(pool)
	}
}

// pastEngine returns the connection, for a body that bypasses fasthttp's writer. It makes
// fasthttp flush the head first. It returns nil if the connection is not a socket.
func pastEngine(ctx *fasthttp.RequestCtx) *connection {
	c, ok := ctx.Conn().(*connection)
	if !ok || c.raw == nil {
		return nil
	}
	ctx.Response.ImmediateHeaderFlush = true
	return c
}
