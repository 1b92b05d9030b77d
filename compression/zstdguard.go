package compression

import (
	"bufio"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

const (
	// zstdHeaderBytes is the longest header of a zstd frame with its magic number (RFC 8878, 3.1.1.1), and
	// zstdBlockBytes the length of a block's (3.1.1.2).
	zstdHeaderBytes = 18
	zstdBlockBytes  = 3
)

// zstdGuard passes a zstd file through to the decoder and parses its frames and blocks, to check each window before it
// is allocated. It refuses unknown structures.
type zstdGuard struct {
	r *bufio.Reader
	// allow is called before a window of that many bytes is allocated.
	allow func(window int64) bool

	skip    int64 // bytes to pass without parsing
	inFrame bool
	checked bool  // a checksum follows the last block of the frame
	largest int64 // the largest window so far
	err     error
}

func (g *zstdGuard) Read(p []byte) (n int, err error) {
	if g.err == nil && g.skip == 0 {
		g.err = g.next()
	}
	if g.err != nil {
		return 0, g.err
	}
	n, err = g.r.Read(p[:min(int64(len(p)), g.skip)])
	if g.skip -= int64(n); err != nil {
		g.err = unexpected(err)
	}
	return n, g.err
}

// next parses the next frame or block header.
func (g *zstdGuard) next() error {
	if !g.inFrame {
		return g.frame()
	}
	b, err := g.r.Peek(zstdBlockBytes)
	if err != nil {
		return unexpected(err)
	}
	head := int64(b[0]) | int64(b[1])<<8 | int64(b[2])<<16
	size := head >> 3
	if head>>1&3 == 1 { // a run of one byte
		size = 1
	}
	g.skip = zstdBlockBytes + size
	if head&1 == 1 { // the last block
		g.inFrame = false
		if g.checked {
			g.skip += 4
		}
	}
	return nil
}

// frame parses the header of a frame. It returns io.EOF at the end of the file.
func (g *zstdGuard) frame() error {
	b, err := g.r.Peek(zstdHeaderBytes)
	if len(b) == 0 {
		return err
	}
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return unexpected(err)
	}
	if h.Skippable {
		g.skip = int64(h.HeaderSize) + int64(h.SkippableSize)
		return nil
	}
	window := zstdWindowOf(&h)
	if !g.allow(window) {
		return fmt.Errorf("%w: the zstd frame needs %d bytes", ErrTooLarge, window)
	}
	g.largest = max(g.largest, window)
	g.skip, g.inFrame, g.checked = int64(h.HeaderSize), true, h.HasCheckSum
	return nil
}

// because returns the guard's error if there is one, else the decoder's.
func (g *zstdGuard) because(err error) error {
	if g.err != nil && g.err != io.EOF {
		return g.err
	}
	return err
}

// zstdGuarded is a decoder on top of a guard.
type zstdGuarded struct {
	decoder *zstd.Decoder
	guard   *zstdGuard
}

func (z *zstdGuarded) Read(p []byte) (int, error) {
	n, err := z.decoder.Read(p)
	if err != nil {
		err = z.guard.because(err) // even for io.EOF, which the decoder returns for a truncated header
	}
	return n, err
}

// WriteTo implements [io.WriterTo].
func (z *zstdGuarded) WriteTo(w io.Writer) (int64, error) {
	n, err := z.decoder.WriteTo(w)
	return n, z.guard.because(err)
}
