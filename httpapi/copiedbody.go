package httpapi

import (
	"io"
	"sync"
)

// copyPiece is how much of a body that is in no file is copied at a time. The engine
// would do it by the 4 KiB of its buffer, with two calls of the system for each.
const copyPiece = 128 << 10

var copyPieces = sync.Pool{New: func() any { return new([copyPiece]byte) }}

// copiedBody is a body that comes from elsewhere, or is made on the way. It is
// read to its end, where what makes it may say that something was wrong.
type copiedBody struct{ io.ReadCloser }

// WriteTo implements [io.WriterTo].
func (b copiedBody) WriteTo(engine io.Writer) (total int64, err error) {
	piece := copyPieces.Get().(*[copyPiece]byte)
	defer copyPieces.Put(piece)
	for {
		n, err := b.Read(piece[:])
		if n > 0 {
			written, writeErr := engine.Write(piece[:n])
			total += int64(written)
			if writeErr != nil {
				return total, writeErr
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
