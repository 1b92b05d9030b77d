// Package rawio reads and writes sockets without notifying the scheduler.
//
// The runtime expects that a system call may block: after 20 µs, while a nar's bytes are
// still being copied, it starts another thread to run goroutines. For a socket that never
// blocks, that is a tenth of the work for a nar of 200 KB. The disadvantage is that the garbage
// collector waits for the call.
package rawio

import (
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Read is read(2) for a descriptor that does not block. n is 0 at the end.
func Read(fd uintptr, p []byte) (n int, err error) { return again(read, fd, p) }

// Write is write(2) for a descriptor that does not block. It may write less than len(p).
func Write(fd uintptr, p []byte) (n int, err error) { return again(write, fd, p) }

// WriteMore is Write with MSG_MORE: the kernel may wait for the next write before it sends a
// segment.
func WriteMore(fd uintptr, p []byte) (n int, err error) { return again(writeMore, fd, p) }

const moreFlags = unix.MSG_MORE | unix.MSG_NOSIGNAL

// Sendfile is sendfile(2) to a descriptor that does not block, for at most n bytes of a
// file from *offset on, which it advances. Use it only for bytes that are in the page
// cache: while the kernel reads them from a disk, the calling thread's processor runs
// no other goroutine.
func Sendfile(to, from uintptr, offset *int64, n int) (sent int, err error) {
	for {
		sent, err = sendfile(to, from, offset, n)
		if err != syscall.EINTR {
			return max(0, sent), err
		}
	}
}

// Poll is epoll_wait(2) without waiting.
func Poll(epoll int, events []unix.EpollEvent) (n int, err error) { return poll(epoll, events) }

// again repeats f after EINTR.
func again(f func(fd uintptr, p []byte) (int, error), fd uintptr, p []byte) (int, error) {
	for {
		n, err := f(fd, p)
		if err != syscall.EINTR {
			return max(0, n), err
		}
	}
}

// Reader reads a connection of package net, and honours its deadlines. It is for one
// goroutine at a time.
type Reader struct {
	conn syscall.RawConn

	// try is the method value of read, allocated once; the other fields are its argument
	// and results.
	try func(fd uintptr) (done bool)
	p   []byte
	n   int
	err error
}

// NewReader makes a reader of a connection's SyscallConn.
func NewReader(conn syscall.RawConn) *Reader {
	r := &Reader{conn: conn}
	r.try = r.read
	return r
}

// Read implements [io.Reader].
func (r *Reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	r.p = p
	err := r.conn.Read(r.try)
	r.p = nil
	switch {
	case err != nil:
		return 0, err
	case r.err != nil:
		return 0, os.NewSyscallError("read", r.err)
	case r.n == 0:
		return 0, io.EOF
	}
	return r.n, nil
}

// read returns false if it must be called again when the descriptor is readable.
func (r *Reader) read(fd uintptr) (done bool) {
	r.n, r.err = Read(fd, r.p)
	return r.err != syscall.EAGAIN
}

// Writer writes to a connection of package net, and honours its deadlines. It is for one
// goroutine at a time.
type Writer struct {
	conn syscall.RawConn

	// As in Reader. n is how much of p was written.
	try func(fd uintptr) (done bool)
	p   []byte
	n   int
	err error
}

// NewWriter makes a writer of a connection's SyscallConn.
func NewWriter(conn syscall.RawConn) *Writer {
	w := &Writer{conn: conn}
	w.try = w.write
	return w
}

// Write implements [io.Writer].
func (w *Writer) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	w.p, w.n, w.err = p, 0, nil
	err := w.conn.Write(w.try)
	w.p = nil
	if err == nil && w.err != nil {
		err = os.NewSyscallError("write", w.err)
	}
	return w.n, err
}

// write returns false if it must be called again when the descriptor is writable.
func (w *Writer) write(fd uintptr) (done bool) {
	w.err = nil
	for w.n < len(w.p) {
		var n int
		if n, w.err = Write(fd, w.p[w.n:]); w.err != nil {
			return w.err != syscall.EAGAIN
		}
		w.n += n
	}
	return true
}
