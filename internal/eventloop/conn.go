package eventloop

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/rawio"
)

// Conn is a connection that the loop has taken over. It implements [net.Conn]. After
// [Conn.Serve], only the served function may call Read, Write and Leave, or another goroutine
// to which it has passed the connection.
type Conn struct {
	loop          *loop
	fd            int
	local, remote net.Addr

	next  func() (step, bool)
	yield func(step) bool // nil without a coroutine
	// onLoop is whether the coroutine runs on the loop, and reads how many reads it has
	// done since it was resumed.
	onLoop    bool
	reads     int
	readLimit int   // how many bytes it may read after waiting in the queue
	pool      *Pool // the pool that it enters or is in; nil for none

	read, write side
	// ending is whether the peer has closed its side, or the connection is broken.
	ending atomic.Bool

	// users counts calls that use the descriptor. Close adds closing, and the last user
	// after that closes the descriptor.
	users  atomic.Int64
	closer sync.Once

	mu      sync.Mutex
	woken   sync.Cond // wakes goroutines that wait outside the loop
	waiting int       // number of these goroutines
	parked  bool      // the coroutine waits to read
	since   time.Time // when it was parked
	closed  bool
}

const closing = 1 << 32

// side is the state of reading, or of writing.
type side struct {
	// ready is false after EAGAIN, until the next event.
	ready atomic.Bool
	// passed is whether the deadline has passed. The timer is kept, as deadlines move
	// often.
	passed   atomic.Bool
	deadline time.Time
	timer    *time.Timer
}

// begin counts a user of the descriptor, which must call end.
func (c *Conn) begin() error {
	if c.users.Add(1) >= closing {
		c.end()
		return net.ErrClosed
	}
	return nil
}

func (c *Conn) end() {
	if c.users.Add(-1) == closing {
		c.closeDescriptor()
	}
}

func (c *Conn) closeDescriptor() {
	c.closer.Do(func() {
		_ = unix.EpollCtl(c.loop.epoll, unix.EPOLL_CTL_DEL, c.fd, nil) // else it ends with the descriptor
		c.loop.remove(c)
		unix.Close(c.fd)
	})
}

// Close implements [net.Conn]. Calls that are waiting fail.
func (c *Conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	for _, s := range []*side{&c.read, &c.write} {
		if s.timer != nil {
			s.timer.Stop()
		}
	}
	last := c.users.Add(closing) == closing
	resume := c.wake()
	c.mu.Unlock()
	if last {
		c.closeDescriptor()
	}
	if resume {
		go c.run(false)
	}
	return nil
}

// Read implements [net.Conn].
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		if c.read.passed.Load() {
			return 0, os.ErrDeadlineExceeded
		}
		if c.read.ready.Swap(false) {
			if c.yield != nil {
				if c.reads++; c.reads > maxReads {
					c.yield(requeue)
					p = p[:min(len(p), c.readLimit)]
				}
			}
			if err := c.begin(); err != nil {
				return 0, err
			}
			n, err := rawio.Read(uintptr(c.fd), p)
			c.end()
			switch {
			case err == syscall.EAGAIN:
			case err != nil:
				c.read.ready.Store(true)
				return 0, os.NewSyscallError("read", err)
			case n == 0:
				c.read.ready.Store(true)
				return 0, io.EOF
			default:
				// A short read means that the socket is empty, see epoll(7). (This is
				// wrong for TCP's urgent data, which HTTP doesn't use.)
				if n == len(p) || c.ending.Load() {
					c.read.ready.Store(true)
				}
				return n, nil
			}
		} else if c.users.Load() >= closing {
			return 0, net.ErrClosed
		}
		if c.yield != nil {
			c.yield(untilReadable)
		} else {
			c.wait(&c.read)
		}
	}
}

// Write implements [net.Conn].
func (c *Conn) Write(p []byte) (n int, err error) {
	var failure error
	err = rawConn{c}.Write(func(fd uintptr) bool {
		for n < len(p) {
			m, err := rawio.Write(fd, p[n:])
			if n += m; err == syscall.EAGAIN {
				return false
			} else if err != nil {
				failure = os.NewSyscallError("write", err)
				break
			}
		}
		return true
	})
	if err == nil {
		err = failure
	}
	return n, err
}

// Leave continues the connection in its own goroutine, until it waits to read again. Call it
// before work that may wait, or take a millisecond.
func (c *Conn) Leave() {
	if c.onLoop || c.pool != nil {
		c.pool = nil
		c.yield(leave)
	}
}

// Waiting returns since when the connection has waited to read, and whether it does.
func (c *Conn) Waiting() (since time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.since, c.parked && !c.closed
}

// CloseWrite is like that of [net.TCPConn].
func (c *Conn) CloseWrite() error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	return os.NewSyscallError("shutdown", unix.Shutdown(c.fd, unix.SHUT_WR))
}

// LocalAddr implements [net.Conn].
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr implements [net.Conn].
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline implements [net.Conn].
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.SetReadDeadline(t); err != nil {
		return err
	}
	return c.SetWriteDeadline(t)
}

// SetReadDeadline implements [net.Conn].
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(&c.read, t) }

// SetWriteDeadline implements [net.Conn].
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(&c.write, t) }

func (c *Conn) setDeadline(s *side, t time.Time) error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	s.deadline = t
	resume := c.isDue(s)
	c.mu.Unlock()
	if resume {
		go c.run(false)
	}
	return nil
}

// isDue records whether the deadline has passed, and sets the timer otherwise. It reports
// whether the caller must resume the coroutine. The mutex is held.
func (c *Conn) isDue(s *side) (resume bool) {
	left := time.Until(s.deadline)
	passed := !s.deadline.IsZero() && left <= 0
	s.passed.Store(passed)
	switch {
	case passed:
		return c.wake()
	case s.deadline.IsZero():
		if s.timer != nil {
			s.timer.Stop()
		}
	case s.timer == nil:
		s.timer = time.AfterFunc(left, func() {
			c.mu.Lock()
			resume := !c.closed && c.isDue(s) // the deadline may just have moved
			c.mu.Unlock()
			if resume {
				c.run(false)
			}
		})
	default:
		s.timer.Reset(left)
	}
	return false
}

// wait waits outside the loop until the side is ready, its deadline has passed, or the
// connection is closed.
func (c *Conn) wait(s *side) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting++
	for !s.isOver(c) {
		c.woken.Wait()
	}
	c.waiting--
}

// isOver reports whether the wait is over. The mutex of the connection is held.
func (s *side) isOver(c *Conn) bool { return s.ready.Load() || s.passed.Load() || c.closed }

// SetLinger is like that of [net.TCPConn].
func (c *Conn) SetLinger(seconds int) error {
	linger := unix.Linger{Onoff: 1, Linger: int32(seconds)}
	if seconds < 0 {
		linger.Onoff, linger.Linger = 0, 0
	}
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	return os.NewSyscallError("setsockopt", unix.SetsockoptLinger(c.fd, unix.SOL_SOCKET, unix.SO_LINGER, &linger))
}

// SyscallConn implements [syscall.Conn].
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return rawConn{c}, nil }

// rawConn gives access to the descriptor.
type rawConn struct{ *Conn }

// Control implements [syscall.RawConn].
func (c rawConn) Control(f func(fd uintptr)) error {
	if err := c.begin(); err != nil {
		return err
	}
	defer c.end()
	f(uintptr(c.fd))
	return nil
}

// Read implements [syscall.RawConn].
func (c rawConn) Read(f func(fd uintptr) (done bool)) error {
	for {
		if c.read.passed.Load() {
			return os.ErrDeadlineExceeded
		}
		c.read.ready.Store(false)
		if err := c.begin(); err != nil {
			return err
		}
		done := f(uintptr(c.fd))
		c.end()
		if done {
			c.read.ready.Store(true) // there may be more to read
			return nil
		}
		c.Leave()
		c.wait(&c.read)
	}
}

// Write implements [syscall.RawConn].
func (c rawConn) Write(f func(fd uintptr) (done bool)) error {
	for {
		if c.write.passed.Load() {
			return os.ErrDeadlineExceeded
		}
		c.write.ready.Store(false)
		if err := c.begin(); err != nil {
			return err
		}
		done := f(uintptr(c.fd))
		c.end()
		if done {
			return nil
		}
		c.Leave()
		c.wait(&c.write)
	}
}
