package httpapi

import (
	"errors"
	"io"
	"sync"

	"github.com/valyala/fasthttp"
)

// copyPiece is how much of a body that is in no file is copied at a time: nars of the
// usual sizes as a whole, with one call of the system each way. Each download has as
// much memory until its client has taken all.
const copyPiece = 256 << 10

var copyPieces = sync.Pool{New: func() any { return new([copyPiece]byte) }}

// copiedBody is a body that comes from elsewhere, or is made on the way. It is
// read to its end, where what makes it may say that something was wrong.
type copiedBody struct {
	io.ReadCloser
	connection *connection // nil to write through the engine
	length     int64
}

// newCopiedBody makes a body of length bytes. One that does not fit into the engine's
// buffer is written past it, the first piece together with the head. (To have the kernel
// pass bytes from one socket to the other, with splice, took longer than to copy them.)
func newCopiedBody(ctx *fasthttp.RequestCtx, body io.ReadCloser, length int64) copiedBody {
	b := copiedBody{body, nil, length}
	if length > writeBuffer {
		if b.connection = pastEngine(ctx); b.connection != nil {
			b.connection.holds = true
		}
	}
	return b
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
	defer copyPieces.Put(piece)
	head := 0
	if c := b.connection; c != nil {
		to = c
		head = copy(piece[:], c.held) // all of it, as the engine's buffer is smaller by far
		c.holds, c.held = false, nil
	}
	for {
		n, err := b.Read(piece[head:])
		if total+int64(n) > b.length {
			return total, errTooLong
		}
		if n > 0 {
			written, writeErr := to.Write(piece[:head+n])
			total += int64(max(0, written-head))
			if writeErr != nil {
				return total, writeErr
			}
			head = 0
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
