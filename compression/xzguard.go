package compression

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// minXzDict is the smallest dictionary of the xz package. It enlarges the dictionary for a stream that needs more.
const minXzDict = 1 << 12

// The dictionaries of all blocks of a file may have xzMostIdle bytes, or xzIdleShare times the size of the data if that is
// more. Programs make blocks of at least a third of a dictionary, except for the last.
const (
	xzMostIdle  = 1 << 30
	xzIdleShare = 64
)

var errXz = errors.New("xz: not a well-formed file")

// ErrTooLarge is the error for a stream that needs a larger dictionary than allowed.
var ErrTooLarge = errors.New("compression: dictionary too large")

// xzGuard passes an xz file through to the decoder and parses its structure, for checks that the decoder lacks: it refuses
// dictionaries above a limit before they are allocated, and properties that xz doesn't allow, and reports truncation at the
// start of a block, which the decoder would accept. It refuses unknown structures, as it could not check what follows if
// the decoder accepted them.
//
// The structure is that of the xz file format 1.2, chapters 2 to 4, and of LZMA2's chunks.
type xzGuard struct {
	r *bufio.Reader
	// allow is called before a dictionary of that many bytes is allocated.
	allow func(dict int64) bool

	skip int64                // bytes to pass without parsing
	want int                  // bytes that step needs; 0 stands for 1
	buf  []byte               // bytes for step so far
	step func(*xzGuard) error // parses buf and sets the next step; nil between streams

	blockBytes int64 // of the LZMA2 data of a block, for its padding
	checkBytes int64 // of the check after each block
	numbers    uint64
	indexBytes int64
	data       int64 // bytes of the chunk's data that the decoder has not returned yet
	allocated  int64 // for dictionaries: the decoder makes one for each block
	decoded    int64 // total bytes of data
	err        error
}

func (g *xzGuard) Read(p []byte) (int, error) {
	if g.err != nil {
		return 0, g.err
	}
	if len(p) > 1 && g.skip == 0 {
		p = p[:1] // headers are short; the decoder reads again
	} else if int64(len(p)) > g.skip && g.skip > 0 {
		p = p[:g.skip]
	}
	n, err := g.r.Read(p)
	if g.skip > 0 {
		g.skip -= int64(n)
	} else if n == 1 {
		if g.see(p[0]); g.err != nil {
			return 0, g.err // without the byte, as io.ReadFull drops an error with the last byte
		}
	}
	return n, g.note(err)
}

func (g *xzGuard) ReadByte() (byte, error) {
	if g.err != nil {
		return 0, g.err
	}
	c, err := g.r.ReadByte()
	if err != nil {
		return c, g.note(err)
	}
	if g.skip > 0 {
		g.skip--
	} else {
		g.see(c)
	}
	return c, g.err
}

func (g *xzGuard) note(err error) error {
	if err == io.EOF && (g.step != nil || len(g.buf) > 0) {
		err = io.ErrUnexpectedEOF
	}
	if g.err == nil {
		g.err = err
	}
	return g.err
}

func (g *xzGuard) see(c byte) {
	g.buf = append(g.buf, c)
	if len(g.buf) < g.want {
		return
	}
	step := g.step
	if step == nil {
		step = (*xzGuard).streamStart
	}
	g.err = step(g)
	g.buf = g.buf[:0]
}

// expect passes skip bytes and then collects want bytes for step.
func (g *xzGuard) expect(skip int64, want int, step func(*xzGuard) error) error {
	g.skip, g.want, g.step = skip, want, step
	return nil
}

// streamStart parses the first byte of a stream header, or of stream padding.
func (g *xzGuard) streamStart() error {
	if g.buf[0] == 0 {
		return g.expect(0, 3, func(g *xzGuard) error { return g.expect(0, 1, nil) })
	}
	return g.expect(6, 5, (*xzGuard).streamFlags)
}

// streamFlags parses the second byte of the flags, which names the check, and the CRC.
func (g *xzGuard) streamFlags() error {
	// Sizes of the checks in bytes, by three IDs each, after ID 0.
	id := int64(g.buf[0] & 15)
	if g.checkBytes = 0; id > 0 {
		g.checkBytes = 4 << ((id - 1) / 3)
	}
	return g.expect(0, 1, (*xzGuard).blockSize)
}

// blockSize parses the first byte of a block header, or of the index.
func (g *xzGuard) blockSize() error {
	if g.buf[0] == 0 {
		g.indexBytes = 1
		g.numbers = 0
		return g.expect(0, 1, (*xzGuard).indexCount)
	}
	return g.expect(0, (int(g.buf[0])+1)*4-1, (*xzGuard).blockHeader)
}

// blockHeader parses the rest of a block header.
func (g *xzGuard) blockHeader() error {
	size, ok := xzBlockDict(g.buf)
	if !ok {
		return errors.New("xz: filters other than LZMA2 are not supported")
	}
	if !g.allow(max(size, minXzDict)) {
		return fmt.Errorf("%w: the xz block needs %d bytes", ErrTooLarge, size)
	}
	// Otherwise, clearing memory for a megabyte of tiny blocks would take minutes.
	if g.allocated += size; g.allocated > xzMostIdle && g.allocated/xzIdleShare > g.decoded {
		return fmt.Errorf("%w: the xz file has dictionaries of %d bytes for %d bytes of data", ErrTooLarge, g.allocated, g.decoded)
	}
	g.blockBytes = 0
	return g.expect(0, 1, (*xzGuard).chunkControl)
}

// chunkControl parses the first byte of an LZMA2 chunk.
func (g *xzGuard) chunkControl() error {
	c := g.buf[0]
	if c >= 0x80 {
		g.data = int64(c&0x1f) << 16
	} else {
		g.data = 0
	}
	switch {
	case c == 0:
		g.blockBytes++
		padding := -g.blockBytes & 3
		return g.expect(padding+g.checkBytes, 1, (*xzGuard).blockSize)
	case c <= 2:
		return g.expect(0, 2, (*xzGuard).chunkUncompressed)
	case c < 0x80:
		return errXz
	case c < 0xC0:
		return g.expect(0, 4, (*xzGuard).chunkCompressed)
	default:
		return g.expect(0, 5, (*xzGuard).chunkCompressed)
	}
}

func (g *xzGuard) chunkUncompressed() error {
	g.data = int64(binary.BigEndian.Uint16(g.buf)) + 1
	g.blockBytes += 3 + g.data
	return g.expect(g.data, 1, (*xzGuard).chunkControl)
}

// chunkCompressed parses the sizes of a chunk, and its new properties if any.
func (g *xzGuard) chunkCompressed() error {
	g.data += int64(binary.BigEndian.Uint16(g.buf)) + 1
	n := int64(binary.BigEndian.Uint16(g.buf[2:])) + 1
	if len(g.buf) > 4 {
		if lc, lp := g.buf[4]%9, g.buf[4]/9%5; lc+lp > 4 {
			return errXz
		}
	}
	g.blockBytes += 1 + int64(len(g.buf)) + n
	return g.expect(n, 1, (*xzGuard).chunkControl)
}

// indexCount collects the number of records, a variable-length integer of up to 9 bytes.
func (g *xzGuard) indexCount() error {
	g.numbers |= uint64(g.buf[0]&0x7f) << (7 * (g.indexBytes - 1))
	g.indexBytes++
	if g.buf[0]&0x80 != 0 {
		if g.indexBytes > 9 {
			return errXz
		}
		return nil
	}
	g.numbers *= 2
	return g.indexNext()
}

// indexNumber parses a byte of one of the records' integers.
func (g *xzGuard) indexNumber() error {
	g.indexBytes++
	if g.buf[0]&0x80 == 0 {
		g.numbers--
	}
	return g.indexNext()
}

func (g *xzGuard) indexNext() error {
	if g.numbers > 0 {
		return g.expect(0, 1, (*xzGuard).indexNumber)
	}
	// Padding, the index's CRC and the stream footer follow. The last byte ends the stream.
	padding := -g.indexBytes & 3
	return g.expect(padding+4+11, 1, func(g *xzGuard) error { return g.expect(0, 1, nil) })
}

// guarded is an xz decoder on top of a guard. Errors of the guard take precedence over the decoder's.
type guarded struct {
	io.Reader
	guard *xzGuard
}

// Read stops at the end of a chunk's data. By then the decoder must have read the whole chunk. Otherwise it would parse the
// rest as the next chunk, which the guard has not checked.
func (x *guarded) Read(p []byte) (int, error) {
	if g := x.guard; len(p) > 0 && g.data <= 0 {
		if g.skip > 0 && g.err == nil {
			g.err = errXz
			return 0, g.err
		}
		p = p[:1] // from the next chunk
	} else {
		p = p[:min(int64(len(p)), max(g.data, 0))]
	}
	n, err := x.Reader.Read(p)
	x.guard.data -= int64(n)
	x.guard.decoded += int64(n)
	if g := x.guard.err; err != nil && g != nil && g != io.EOF {
		err = g
	}
	return n, err
}
