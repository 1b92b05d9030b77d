package compression

import (
	"bufio"
	"compress/bzip2"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/klauspost/compress/gzip"
	"github.com/ulikunitz/xz"
	"nar-herder/compression/lzip"
)

const (
	// maxDict is the largest dictionary that is accepted of xz and lzip, in bytes: 64 MiB is that of xz -9; lzip -9
	// has 32 MiB. Guix needs no larger one, and a file of a few bytes must not choose how much memory we allocate.
	maxDict = 64 << 20
	// maxWindow is the largest zstd window, in bytes: 128 MiB is what the zstd program itself writes at most
	// (--ultra -22) and reads without an option (--long=27).
	maxWindow = 128 << 20

	inputBuffer = 64 << 10
)

// ErrClosed is the error of a Read after Close.
var ErrClosed = errors.New("compression: read after Close")

// NewReader returns the decompressed bytes of r, which holds a nar in the compression that a narinfo calls name; for
// an unknown one the error is an ErrUnknown. It may read the beginning of r at once, and reads beyond the end of the
// compressed data, as that has to be the end of r. Close releases the reader's memory; it does not close r. The
// result also implements io.WriterTo if that is faster.
// Checksums are verified; io.EOF means that they match. Input that ends too early, empty input included, gives
// an error that is io.ErrUnexpectedEOF for errors.Is, never io.EOF. Several streams (members, frames) one after the
// other are read as one, as the programs do. Anything after the last is an error, where gzip, bzip2 and lzip
// (the programs) would warn and go on; xz's padding and zstd's skippable frames belong to those formats and are
// accepted.
//
// Memory while reading, besides 64 KiB of input buffer:
//   - none: nothing; the bytes of r.
//   - gzip: 50 KiB.
//   - bzip2: 5 MiB.
//   - xz: the dictionary that the stream asks for, refused above 64 MiB.
//   - lzip: the dictionary, but no more than four times the data; refused above 64 MiB.
//   - zstd: the window, but no more than the data, and 1 MiB; refused above 128 MiB. The next
//     reader uses it unless it was collected before.
//
// [Memory] has the same per file. No reader starts goroutines or uses more than one core.
func NewReader(name string, r io.Reader) (io.ReadCloser, error) {
	return NewReaderWithin(name, r, MaxMemory(name))
}

// NewReaderWithin is NewReader with a limit of memory, in bytes as [Memory] counts them. Data that need more, such as a
// later stream with a larger window, give an [ErrTooLarge] before it is allocated; a reader with a higher limit, up to
// [MaxMemory], can read them.
func NewReaderWithin(name string, r io.Reader, memory int64) (io.ReadCloser, error) {
	return newReader(name, r, func(needed int64) bool { return needed <= memory })
}

// newReader is NewReaderWithin with a function that decides whether the reader may hold that many bytes.
func newReader(name string, r io.Reader, allow func(needed int64) bool) (io.ReadCloser, error) {
	if !Known(name) {
		return nil, ErrUnknown{Name: name, Allowed: slices.Clone(readable)}
	}
	if name == None {
		return &reader{src: r}, nil
	}
	in := bufio.NewReaderSize(r, inputBuffer)
	if _, err := in.Peek(1); err != nil {
		// Some of the decoders take empty input for an empty file; none of the formats has such files.
		return nil, fmt.Errorf("%s: %w", name, unexpected(err))
	}
	var z *reader
	var err error
	switch name {
	case Gzip:
		var g *gzip.Reader
		if g, err = gzip.NewReader(in); err == nil {
			z = &reader{src: g}
		}
	case Bzip2:
		z = &reader{src: bzip2.NewReader(in)}
	case Xz:
		var x *xz.Reader
		guard := &xzGuard{r: in, allow: func(dict int64) bool { return dict <= maxDict && allow(xzMemory+dict) }}
		if x, err = (xz.ReaderConfig{DictCap: minXzDict}).NewReader(guard); err == nil {
			z = &reader{src: &guarded{x, guard}}
		}
	case Lzip:
		l := lzip.NewReader(in)
		l.LimitDict(maxDict)
		l.LimitWindow(func(window int) bool { return allow(lzipMemory + int64(window)) })
		z = &reader{src: l}
	case Zstd:
		z, err = newZstdReader(&zstdGuard{r: in, allow: func(window int64) bool { return window <= maxWindow && allow(zstdMemory+window) }})
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, tooLarge(unexpected(err)))
	}
	z.name = name
	return z, nil
}

// unexpected turns io.EOF into io.ErrUnexpectedEOF.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// reader adds the name of the compression to the errors of a decoder, makes them sticky, and refuses calls after Close.
type reader struct {
	src     io.Reader
	name    string
	release func() // gives src back; may be nil
	err     error
}

func (z *reader) Read(p []byte) (int, error) {
	if z.err != nil {
		return 0, z.err
	}
	n, err := z.src.Read(p)
	z.note(err)
	return n, z.err
}

func (z *reader) WriteTo(w io.Writer) (int64, error) {
	if z.err != nil {
		if z.err == io.EOF {
			return 0, nil
		}
		return 0, z.err
	}
	to, ok := z.src.(io.WriterTo)
	if !ok {
		// The struct hides WriteTo, which io.Copy would call again.
		return io.Copy(w, struct{ io.Reader }{z})
	}
	n, err := to.WriteTo(w)
	if err == nil {
		err = io.EOF
	}
	z.note(err)
	if z.err == io.EOF {
		return n, nil
	}
	return n, z.err
}

func (z *reader) note(err error) {
	if err != nil && err != io.EOF && z.name != "" {
		err = fmt.Errorf("%s: %w", z.name, tooLarge(err))
	}
	z.err = err
}

func (z *reader) Close() error {
	if z.release != nil {
		z.release()
	}
	z.src, z.release, z.err = nil, nil, ErrClosed
	return nil
}
