// Package eventloop serves the connections of a server on one goroutine while answers are quick.
//
// If package net wakes a goroutine for each connection, the runtime starts a second thread for
// two requests that arrive together, although one thread answers both in some 20 µs. Here
// one goroutine waits for all connections with epoll(7), and each connection is a coroutine that
// it resumes when the connection is readable. Short work on a processor or disk enters a [Pool].
// Before work that may take long, a coroutine calls [Conn.Leave] and continues in its own
// goroutine. Clients that pipeline wait in a queue after their first reads, so that other clients
// wait for at most one read of them.
package eventloop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/rawio"
)

const (
	// roundTime is how long connections wait for others that became readable with them. After
	// that, the rest are resumed in their own goroutines.
	roundTime = time.Millisecond
	// maxReads is how many reads a connection may do before it is queued.
	maxReads = 2
	// queueBytes is how many bytes all connections in the queue may read in one round, and
	// minReadBytes and maxReadBytes bound the share of one connection: the more clients
	// pipeline, the less each may read at a time.
	queueBytes                 = 64 << 10
	minReadBytes, maxReadBytes = 1 << 10, 4 << 10
	// maxEvents is the number of events per call of epoll_wait.
	maxEvents = 128
)

// loop is the event loop of the process. It never ends.
type loop struct {
	epoll int
	wake  int       // an eventfd, readable when connections were queued outside the loop
	begun time.Time // when the last events arrived; used only on the loop

	mu    sync.Mutex
	conns []*Conn // by descriptor
	// queue are connections that have more to read and have done maxReads reads.
	queue []*Conn
}

var theLoop struct {
	sync.Mutex
	*loop // nil until it is needed
}

func getLoop() (*loop, error) {
	theLoop.Lock()
	defer theLoop.Unlock()
	if theLoop.loop != nil {
		return theLoop.loop, nil
	}
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		unix.Close(epoll)
		return nil, os.NewSyscallError("eventfd", err)
	}
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLET, Fd: int32(wake)}
	if err := unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, wake, &event); err != nil {
		unix.Close(wake)
		unix.Close(epoll)
		return nil, os.NewSyscallError("epoll_ctl", err)
	}
	theLoop.loop = &loop{epoll: epoll, wake: wake}
	go theLoop.run()
	return theLoop.loop, nil
}

// Take takes the socket of conn over. It closes conn, but the socket stays open and belongs to
// the Conn. The error is [errors.ErrUnsupported] if conn is not a socket.
func Take(conn net.Conn) (*Conn, error) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return nil, err
	}
	l, err := getLoop()
	if err != nil {
		return nil, err
	}
	fd, dupErr := -1, error(nil)
	if err := raw.Control(func(of uintptr) { fd, dupErr = unix.FcntlInt(of, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, os.NewSyscallError("fcntl", dupErr)
	}
	c := &Conn{loop: l, fd: fd, local: conn.LocalAddr(), remote: conn.RemoteAddr()}
	c.woken.L = &c.mu
	c.read.ready.Store(true)
	c.write.ready.Store(true)
	// First, or package net's poller would be woken for it as well.
	if err := conn.Close(); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := l.add(c); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return c, nil
}

func (l *loop) add(c *Conn) error {
	l.mu.Lock()
	for len(l.conns) <= c.fd {
		l.conns = append(l.conns, nil)
	}
	l.conns[c.fd] = c
	l.mu.Unlock()
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(c.fd)}
	if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, c.fd, &event); err != nil {
		l.remove(c)
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// remove forgets a connection before its descriptor is closed.
func (l *loop) remove(c *Conn) {
	l.mu.Lock()
	l.conns[c.fd] = nil
	l.mu.Unlock()
}

func (l *loop) run() {
	var events [maxEvents]unix.EpollEvent
	var ready [maxEvents]*Conn
	queued := false
	for {
		n, err := l.poll(events[:], queued)
		if err != nil {
			if err == unix.EINTR {
				continue
			}
			panic(fmt.Sprintf("eventloop: epoll_wait: %v", err)) // the descriptor must be wrong
		}
		l.begun = time.Now()
		l.mu.Lock()
		for i := range n {
			// After an event of a descriptor that was closed and reused since, the new
			// connection only reads once too often. The eventfd has no Conn, and needs no
			// read as it is edge-triggered.
			ready[i] = nil
			if fd := int(events[i].Fd); fd < len(l.conns) {
				ready[i] = l.conns[fd]
			}
		}
		l.mu.Unlock()
		started := false
		for i := range n {
			c := ready[i]
			ready[i] = nil
			if c == nil {
				continue
			}
			resume, woken := c.note(events[i].Events)
			started = started || woken
			if resume {
				if i > 0 && time.Since(l.begun) > roundTime {
					go c.run(false)
					started = true
				} else if !c.run(true) {
					started = true
				}
			}
		}
		// One at a time, as connections with new events come first.
		if c := l.dequeue(); c != nil && !c.run(true) {
			started = true
		}
		queued = l.hasQueued()
		if started && runtime.GOMAXPROCS(0) == 1 {
			// With one processor, started goroutines would wait until the runtime retakes
			// it from the system call. With more, another thread runs them.
			runtime.Gosched()
		}
	}
}

// poll returns events, and waits for them unless connections are queued. Without waiting it
// bypasses the runtime, which would give the processor to another goroutine.
func (l *loop) poll(events []unix.EpollEvent, queued bool) (int, error) {
	if !queued {
		return unix.EpollWait(l.epoll, events, -1)
	}
	return rawio.Poll(l.epoll, events)
}

// enqueue adds a connection to the queue. The loop resumes it.
func (l *loop) enqueue(c *Conn, onLoop bool) {
	l.mu.Lock()
	l.queue = append(l.queue, c)
	first := len(l.queue) == 1
	l.mu.Unlock()
	if first && !onLoop {
		_, _ = unix.Write(l.wake, binary.NativeEndian.AppendUint64(nil, 1)) // fails only after 2^64-2
	}
}

// dequeue removes and returns the first connection of the queue, or nil.
func (l *loop) dequeue() *Conn {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.queue) == 0 {
		return nil
	}
	c := l.queue[0]
	c.readLimit = max(minReadBytes, min(queueBytes/len(l.queue), maxReadBytes))
	l.queue[0] = nil
	l.queue = l.queue[1:]
	return c
}

func (l *loop) hasQueued() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.queue) > 0
}

// step is what a coroutine waits for when it yields.
type step int

const (
	untilReadable step = iota
	leave
	requeue
	enterPool
)

// Serve calls f in a coroutine, which runs on the loop or in its own goroutine. f reads from the
// connection, writes to it, and must close it. Before it passes the connection on to another
// goroutine, it must leave the loop, and not read any more.
func (c *Conn) Serve(f func()) {
	c.next, _ = iter.Pull(func(yield func(step) bool) {
		c.yield = yield
		defer func() {
			// iter.Pull would lose the stack.
			if fault := recover(); fault != nil {
				panic(fmt.Sprintf("%v\n\n%s", fault, debug.Stack()))
			}
		}()
		f()
	})
	c.loop.enqueue(c, false)
}

// run resumes the coroutine until it waits for bytes or in the queue. It returns false if the
// coroutine has left the loop.
func (c *Conn) run(onLoop bool) bool {
	c.reads = 0
	for {
		c.onLoop = onLoop
		what, ok := c.next()
		if !ok {
			return true
		}
		switch what {
		case leave:
			go c.run(false)
			return false
		case enterPool:
			c.pool.enter(c)
			return false
		case requeue:
			c.pool = nil
			c.loop.enqueue(c, onLoop)
			return true
		}
		if c.park() {
			return true
		}
	}
}

// park makes the next event resume the coroutine. It returns false if there was one already.
func (c *Conn) park() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.parked = !c.read.isOver(c); c.parked {
		c.pool = nil
	}
	if c.onLoop {
		c.since = c.loop.begun
	} else {
		c.since = time.Now()
	}
	return c.parked
}

// note records an event. It reports whether the caller must resume the coroutine, and whether a
// goroutine outside the loop was woken.
func (c *Conn) note(events uint32) (resume, woken bool) {
	if events&(unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		c.ending.Store(true)
	}
	if events&^unix.EPOLLOUT != 0 {
		c.read.ready.Store(true)
	}
	if events&^(unix.EPOLLIN|unix.EPOLLRDHUP) != 0 {
		c.write.ready.Store(true)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.wake(), c.waiting > 0
}

// wake wakes goroutines that wait outside the loop, and reports whether the caller must resume
// the coroutine. The mutex is held.
func (c *Conn) wake() bool {
	c.woken.Broadcast()
	if !c.parked || !c.read.isOver(c) {
		return false
	}
	c.parked = false
	return true
}
