package engine

import (
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"github.com/valyala/fasthttp"
	"golang.org/x/sys/unix"

	"nar-herder/compression/decoders"
)

// copyPiece is how much of a body that is in no file is copied at a time: nars of the
// usual sizes as a whole, with one call of the system each way. A download has as much
// memory only while its client takes bytes, but for what the client leaves of a piece.
const copyPiece = decoders.Piece

// slowWrite is how long a client takes for a piece, or for what is left of it, before
// the next piece waits until the client has room for it.
const slowWrite = 50 * time.Millisecond

var copyPieces = sync.Pool{New: func() any { return new([copyPiece]byte) }}

// copiedBody is a body that comes from elsewhere, or is made on the way. It is
// read to its end, where what makes it may say that something was wrong.
type copiedBody struct {
	io.ReadCloser
	connection *connection // nil to write through the engine
	length     int64
}

// SendCopy makes length bytes of a body the answer's. One that does not fit into the engine's
// buffer is written past it, the first piece together with the head. (To have the kernel
// pass bytes from one socket to the other, with splice, took longer than to copy them.)
func SendCopy(ctx *fasthttp.RequestCtx, body io.ReadCloser, length int64) {
	b := copiedBody{body, nil, length}
	if length > writeBuffer {
		if b.connection = pastEngine(ctx); b.connection != nil {
			b.connection.holds = true
		}
	}
	ctx.Response.SetBodyStream(b, int(length))
}

var errTooLong = errors.New("the body of an answer is longer than its head says")

// Close implements [io.Closer]. An answer that is dropped before it is written holds
// nothing back any more.
func (b copiedBody) Close() error {
	if b.connection != nil {
		b.connection.holds, b.connection.held = false, nil
	}
	return b.ReadCloser.Close()
}

// WriteTo implements [io.WriterTo].
func (b copiedBody) WriteTo(engine io.Writer) (total int64, err error) {
	to := engine
	piece := copyPieces.Get().(*[copyPiece]byte)
	defer func() {
		if piece != nil {
			copyPieces.Put(piece)
		}
	}()
	head := 0
	if c := b.connection; c != nil {
		to = c
		head = copy(piece[:], c.held) // all of it, as the engine's buffer is smaller by far
		c.holds, c.held = false, nil
	}
	for slow := false; ; {
		n, err := b.Read(piece[head:])
		for slow && err == nil && n < len(piece) { // a decoder may have had to restart for it
			var more int
			more, err = b.Read(piece[n:])
			n += more
		}
		if total+int64(n) > b.length {
			return total, errTooLong
		}
		if n > 0 {
			begun := time.Now()
			written, writeErr := to.Write(piece[:head+n])
			total += int64(max(0, written-head))
			if writeErr != nil {
				return total, writeErr
			}
			head = 0
			if slow = b.connection != nil && time.Since(begun) > slowWrite; slow && err == nil {
				copyPieces.Put(piece)
				piece = nil
				if err := b.connection.waitForRoom(); err != nil {
					return total, err
				}
				piece = copyPieces.Get().(*[copyPiece]byte)
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// waitForRoom waits until the client's connection takes bytes, as poll(2) says: of TCP,
// when a third of what it can hold is free. It fails when the client takes none for
// too long, or the connection is broken: poll reports room then as well.
func (c *connection) waitForRoom() error {
	waiting := -1 // bytes that the client has not taken
	_, err := c.slowly(func() (taken int64, err error) {
		var pollErr error
		err = c.raw.Write(func(fd uintptr) bool {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
			ready, err := unix.Poll(poll, 0)
			if err != nil && !errors.Is(err, unix.EINTR) {
				pollErr = os.NewSyscallError("poll", err)
				return true
			}
			if ready > 0 && poll[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 {
				pollErr = os.NewSyscallError("write", unix.EPIPE)
				return true
			}
			if now, err := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ); err == nil {
				if waiting >= 0 {
					taken += int64(max(0, waiting-now))
				}
				waiting = now
			}
			return ready > 0
		})
		if err == nil {
			err = pollErr
		}
		return taken, err
	})
	return err
}
