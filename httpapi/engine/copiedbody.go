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
	"nar-herder/httpapi/measured"
)

// copyPiece is how much of a body is copied at a time: nars of the usual sizes as a whole,
// with one system call each way. A download holds that memory only while its client reads,
// apart from the unread rest of a piece.
const copyPiece = decoders.Piece

// slowWrite is the time for writing a piece above which the client is slow: the next piece
// is not read before the connection has room for it.
const slowWrite = 50 * time.Millisecond

var copyPieces = sync.Pool{New: func() any { return new([copyPiece]byte) }}

// copiedBody is a body that is not a file, such as a decompressed nar. It is read to its
// end, as its reader may return an error there.
type copiedBody struct {
	io.ReadCloser
	connection *connection // nil to write through the engine
	length     int64
	answers    *measured.Pending
}

// SendCopy answers with length bytes of a body. One that does not fit into fasthttp's buffer
// bypasses it, and the first piece is written together with the head. (For bytes from another
// socket, splice(2) took longer than copying.)
func SendCopy(ctx *fasthttp.RequestCtx, body io.ReadCloser, length int64) {
	b := copiedBody{body, nil, length, pendingOf(ctx)}
	if length > writeBuffer {
		if b.connection = pastEngine(ctx); b.connection != nil {
			b.connection.holds = true
			if b.connection.tls != nil {
				b.connection.leaveLoop() // encryption takes as long as several short answers
			}
		}
	}
	ctx.Response.SetBodyStream(b, int(length))
}

var errTooLong = errors.New("the body of an answer is longer than its head says")

// Close implements [io.Closer]. It undoes holding back the head if the answer was dropped.
func (b copiedBody) Close() error {
	if b.connection != nil {
		b.connection.holds, b.connection.held = false, nil
	}
	return b.ReadCloser.Close()
}

// WriteTo implements [io.WriterTo].
func (b copiedBody) WriteTo(engine io.Writer) (total int64, err error) {
	defer func() {
		if all := err == nil && total == b.length; b.connection != nil {
			b.answers.Ended(time.Now(), total, all)
		} else {
			b.answers.Copied(total, all)
		}
	}()
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
		head = copy(piece[:], c.held) // all of it, as fasthttp's buffer is much smaller
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

// waitForRoom waits until the connection is writable according to poll(2): for TCP, until a
// third of the buffer is free. It fails if the client reads nothing for too long, or the
// connection is broken, which poll reports as writable too.
func (c *connection) waitForRoom() error {
	waiting := -1 // bytes that the client has not read
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
