package httpapi

import (
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"

	"nar-herder/internal/eventloop"
	"nar-herder/internal/rawio"
	"nar-herder/storage"
)

// connections are those of a server that are open.
type connections struct {
	log             *slog.Logger
	progressTimeout time.Duration

	mu   sync.Mutex
	open map[*connection]struct{}

	// draining makes connections end once their clients are quiet; see drain.
	draining  atomic.Bool
	quietTime time.Duration // but in tests, the constant

	// ending makes each answer the last of its connection.
	ending atomic.Bool

	// sending is how many bodies are being sent from files.
	sending atomic.Int32
}

func newConnections(log *slog.Logger, progressTimeout time.Duration) *connections {
	return &connections{log: log, progressTimeout: progressTimeout, quietTime: quietTime, open: make(map[*connection]struct{})}
}

func (c *connections) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.open)
}

// closeAll cuts them, whatever they are doing. Each is counted until who serves
// it has noticed.
func (c *connections) closeAll() {
	c.mu.Lock()
	all := make([]*connection, 0, len(c.open))
	for connection := range c.open {
		all = append(all, connection)
	}
	c.mu.Unlock()
	for _, connection := range all {
		_ = connection.Conn.Close() // or the client was first
	}
}

// serve has the engine answer the clients of a listener until that is closed.
func (c *connections) serve(engine *fasthttp.Server, l net.Listener) error {
	for {
		accepted, err := c.accept(l)
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
				return nil
			}
			return err
		}
		var connection *connection
		err = c.waitOut(func() (err error) {
			connection, err = c.wrap(accepted)
			return err
		})
		if err != nil {
			c.log.Error("can't serve a connection", "error", err)
			_ = accepted.Close()
			continue
		}
		serve := func() { _ = engine.ServeConn(connection) } // what goes wrong is the client's
		if connection.loop != nil {
			connection.loop.Serve(serve)
		} else {
			go serve()
		}
	}
}

// accept accepts a connection.
func (c *connections) accept(l net.Listener) (accepted net.Conn, err error) {
	err = c.waitOut(func() (err error) {
		accepted, err = l.Accept()
		return err
	})
	return accepted, err
}

// waitOut waits out a lack of file descriptors or memory, which passes when
// some connections end: a server that gave up then would be gone for good.
func (c *connections) waitOut(try func() error) error {
	for delay := 5 * time.Millisecond; ; delay = min(2*delay, time.Second) {
		err := try()
		lacking := errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) ||
			errors.Is(err, syscall.ENOBUFS) || errors.Is(err, syscall.ENOMEM)
		if !lacking && !errors.Is(err, syscall.ECONNABORTED) {
			return err
		}
		if lacking {
			c.log.Error("can't accept a connection; raise the limit of open files if this goes on", "error", err, "retry", delay)
			time.Sleep(delay)
		}
	}
}

// wrap takes a connection over.
func (c *connections) wrap(accepted net.Conn) (*connection, error) {
	connection := &connection{Conn: accepted, connections: c}
	loop, err := eventloop.Take(accepted)
	switch {
	case err == nil:
		connection.Conn, connection.loop = loop, loop
		connection.raw, _ = loop.SyscallConn() // it has one
	case !errors.Is(err, errors.ErrUnsupported):
		return nil, err
	}
	connection.tryWrite = connection.writeOnce
	c.mu.Lock()
	c.open[connection] = struct{}{}
	c.mu.Unlock()
	return connection, nil
}

// connection is one client's. It adds to a net.Conn:
//
//   - Answers may take for ever, as long as the client goes on taking bytes.
//   - While a client takes none, its requests are still read. The client of
//     Guix writes a thousand of them before it reads the first answer; a
//     server that only writes until the answers are taken, with a client that
//     only writes until the requests are, would wait for ever.
//   - Deadlines for reading, of which two come with each request, are set
//     again only when they have moved by more than a second.
type connection struct {
	net.Conn
	connections *connections
	loop        *eventloop.Conn // nil of what is not the system's, and
	raw         syscall.RawConn // its descriptor

	// ahead are bytes read while writing.
	ahead []byte

	deadline, deadlineSet time.Time

	// begun is whether anything was read, and failure the error of the next Read.
	begun   bool
	failure error

	// fileFollows says that the next Write is the head of an answer whose body
	// a fileBody sends: both go in one segment then.
	fileFollows bool
	// holds says that what is written is held back, up to the head of an answer
	// whose body is a copiedBody: both go in one call of the system then.
	holds bool
	held  []byte

	// pending and its result are the arguments of tryWrite, a method value
	// that is made once.
	tryWrite func(fd uintptr) bool
	pending  []byte
	written  int
	writeErr error
}

// maxAhead bounds how much is read while writing, for each connection: a
// thousand requests of the longest kind seen take a quarter of it.
const maxAhead = 1 << 20

func (c *connection) Close() error {
	c.connections.mu.Lock()
	delete(c.connections.open, c)
	c.connections.mu.Unlock()
	return c.Conn.Close()
}

func (c *connection) SetReadDeadline(t time.Time) error {
	c.deadline = t
	return nil
}

func (c *connection) read(p []byte) (int, error) {
	if len(c.ahead) > 0 {
		n := copy(p, c.ahead)
		if c.ahead = c.ahead[n:]; len(c.ahead) == 0 {
			c.ahead = nil
		}
		return n, nil
	}
	if moved := c.deadline.Sub(c.deadlineSet); moved < -time.Second || moved > time.Second {
		if err := c.Conn.SetReadDeadline(c.deadline); err != nil {
			return 0, err
		}
		c.deadlineSet = c.deadline
	}
	if c.connections.draining.Load() {
		c.endWhenQuiet()
	}
	if c.connections.ending.Load() { // looked at last, as endAll sets another deadline
		return 0, net.ErrClosed
	}
	return c.Conn.Read(p)
}

// Write tries without waiting first, which is all that most answers need.
func (c *connection) Write(p []byte) (int, error) {
	if c.holds {
		c.held = append(c.held, p...)
		return len(p), nil
	}
	n := 0
	if c.raw != nil {
		// It is not even called on a connection that is closed.
		c.written, c.writeErr = 0, nil
		c.pending = p
		err := c.raw.Write(c.tryWrite)
		c.pending, c.fileFollows = nil, false
		if n = c.written; err == nil {
			err = c.writeErr
		}
		if err != nil || n == len(p) {
			return n, err
		}
	}
	m, err := c.writeSlowly(p[n:])
	return n + m, err
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

// writeSlowly writes to a client that does not take all at once.
func (c *connection) writeSlowly(p []byte) (written int, err error) {
	_, err = c.slowly(func() (int64, error) {
		n, err := c.Conn.Write(p[written:])
		written += n
		return int64(n), err
	})
	return written, err
}

// slowly calls send until it has sent all, or the client takes no more. It looks
// for requests of the client's meanwhile: soon, since the client may be waiting
// for that, then less and less often.
func (c *connection) slowly(send func() (int64, error)) (total int64, err error) {
	defer func() {
		if err == nil {
			err = c.Conn.SetWriteDeadline(time.Time{})
		}
	}()
	progress := time.Now()
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
		} else if time.Since(progress) > c.connections.progressTimeout {
			return total, err
		}
		if c.readAhead() {
			wait = time.Millisecond
		}
	}
}

// readAhead takes in what the client has sent, without waiting, and says
// whether there was anything.
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
	_ = c.raw.Read(func(fd uintptr) bool {
		for len(c.ahead) < maxAhead {
			start := len(c.ahead)
			if cap(c.ahead)-start < 4096 {
				grown := make([]byte, start, max(2*cap(c.ahead), 16<<10))
				copy(grown, c.ahead)
				c.ahead = grown
			}
			n, _ := rawio.Read(fd, c.ahead[start:cap(c.ahead)])
			if n == 0 {
				// Nothing, the end, or a fault: the next Read finds the same.
				break
			}
			c.ahead = c.ahead[:start+n]
			some = true
		}
		return true
	})
	return some
}

// leaveLoop is called before what may take long: other connections no longer wait for
// this one, until it has answered.
func (c *connection) leaveLoop() {
	if c.loop != nil {
		c.loop.Leave()
	}
}

// leaveLoop is [connection.leaveLoop] of the request's.
func leaveLoop(ctx *fasthttp.RequestCtx) {
	if c, ok := ctx.Conn().(*connection); ok {
		c.leaveLoop()
	}
}

// pastEngine returns the connection, for a body that is written to it past the engine's
// writer, which is empty then: the head is written before. It is nil for a connection
// that is not ours.
func pastEngine(ctx *fasthttp.RequestCtx) *connection {
	c, ok := ctx.Conn().(*connection)
	if !ok || c.raw == nil {
		return nil
	}
	ctx.Response.ImmediateHeaderFlush = true
	return c
}

// fileBody is the body of an answer that is stored in a file.
type fileBody struct {
	storage.LocalFile
	connection *connection
	length     int64
	// shared is the file if other answers share it, or nil.
	shared *sharedReader
}

// newFileBody makes a body of length bytes of a file. It returns nil if they must be
// copied. The head is written at once, in one segment with the body's first bytes.
func newFileBody(ctx *fasthttp.RequestCtx, reader io.Reader, length int64) *fileBody {
	file, isLocal := reader.(storage.LocalFile)
	if !isLocal || length <= smallFile {
		return nil
	}
	c := pastEngine(ctx)
	if c == nil {
		return nil
	}
	c.fileFollows = true
	shared, _ := reader.(*sharedReader)
	return &fileBody{file, c, length, shared}
}

// smallFile is the length up to which a file is copied, since its bytes fit into
// the write that its head takes anyway.
const smallFile = 4 << 10

// WriteTo sends the file without copying its bytes through this process, past
// the engine's writer, which is empty once the head is flushed. What is still
// being written is sent as it comes.
func (b *fileBody) WriteTo(engine io.Writer) (total int64, err error) {
	growing, _ := b.LocalFile.(storage.GrowingFile)
	for total < b.length {
		next := b.length - total
		if growing != nil {
			var there int64
			if there, err = growing.Next(); err != nil {
				break
			}
			next = min(next, there)
		}
		var sent int64
		sent, err = b.send(next)
		if growing != nil {
			growing.Skip(sent)
		}
		if total += sent; sent < next {
			if sent > 0 || !isUnsendable(err) {
				return total, err
			}
			break
		}
	}
	if total == b.length {
		b.shared.wasSent(b.length)
		return total, nil
	}
	// From a file system that can't, or from where else the bytes are.
	copied, err := io.CopyN(engine, b.LocalFile, b.length-total)
	return total + copied, err
}

// isUnsendable says whether an error is one of files that sendfile can't read.
func isUnsendable(err error) bool {
	return errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EOPNOTSUPP)
}

// send sends bytes of the file. It calls sendfile itself: what package net does
// with a deadline that has passed is to read from the file in vain, and the
// client would miss those bytes.
func (b *fileBody) send(length int64) (int64, error) {
	file, offset := b.Local()
	source, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	c := b.connection
	cached := b.shared.isCached()
	if !cached {
		c.leaveLoop() // to read from a disk takes long
	}
	c.connections.sending.Add(1)
	defer c.connections.sending.Add(-1)
	s := &fileSender{source: source, sending: &c.connections.sending, offset: offset, left: length, sendfile: unixSendfile}
	if cached {
		s.sendfile = rawio.Sendfile
	}
	err = c.raw.Write(s.send)
	if err == nil && s.full {
		s.wait = true
		_, err = c.slowly(func() (int64, error) {
			before := s.offset
			err := c.raw.Write(s.send)
			return s.offset - before, err
		})
	}
	if err == nil {
		err = s.err
	}
	return s.offset - offset, err
}

const (
	// wholePiece is how much of a file is sent at once. It is nars of the usual
	// sizes as a whole, and for the others four times what the kernel passes on
	// at a time.
	wholePiece = 256 << 10
	// eagerPiece is the size for a client that has the machine to itself. The
	// kernel holds back a segment that isn't full until the end of a piece, and
	// such a client waits for it: pieces of 1 GiB have 0.6 of the speed, those
	// of 48 KiB 1.3 times that of wholePiece, and the processor does a third
	// more for them (one curl on loopback; go run ./cmd/bench nar).
	eagerPiece = 48 << 10
	// eagerMost is up to how many bodies at a time it is used.
	eagerMost = 2
)

// fileSender sends a part of a file to a socket.
type fileSender struct {
	source       syscall.RawConn
	sending      *atomic.Int32
	offset, left int64
	sendfile     func(to, from uintptr, offset *int64, n int) (int, error)
	begun        bool
	wait         bool // when the socket's buffer is full
	full         bool
	err          error
}

func unixSendfile(to, from uintptr, offset *int64, n int) (int, error) {
	return unix.Sendfile(int(to), int(from), offset, n)
}

// send is called with the socket's descriptor; false asks to be called again
// when it takes more.
func (s *fileSender) send(socket uintptr) (done bool) {
	s.full = false
	err := s.source.Control(func(file uintptr) {
		for s.left > 0 && s.err == nil && !s.full {
			piece := int64(wholePiece)
			if s.begun && s.sending.Load() <= eagerMost {
				piece = eagerPiece
			}
			// It moves the offset on.
			n, err := s.sendfile(socket, file, &s.offset, int(min(s.left, piece)))
			s.left -= int64(max(n, 0))
			s.begun = true
			switch {
			case err == unix.EAGAIN:
				s.full = true
			case err == unix.EINTR:
			case err != nil:
				s.err = os.NewSyscallError("sendfile", err)
			case n == 0:
				s.left = 0 // the file is shorter than it was; the caller counts the bytes
			}
		}
	})
	if err != nil {
		s.err = err
	}
	return !s.full || !s.wait
}
