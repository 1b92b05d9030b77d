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
	// maxDict is the largest dictionary that is accepted in xz and lzip files, in bytes. xz -9 uses 64 MiB, and lzip -9
	// 32 MiB. Guix needs no larger one, and a small file must not control how much memory is allocated.
	maxDict = 64 << 20
	// maxWindow is the largest zstd window, in bytes: 128 MiB is the most that the zstd program writes (--ultra -22) and
	// reads without an option (--long=27).
	maxWindow = 128 << 20

	inputBuffer = 64 << 10
)

// ErrClosed is the error of a Read after Close.
var ErrClosed = errors.New("compression: read after Close")

// NewReader returns a reader that decompresses r, in the compression that a narinfo calls name. The error for an unknown
// one is an ErrUnknown. NewReader may read the beginning of r. The compressed data must end at the end of r. Close releases
// the reader's memory; it does not close r. The result also implements io.WriterTo if that is faster.
//
// Checksums are verified; io.EOF means that they match. Input that ends too early, including empty input, gives
// an error that is io.ErrUnexpectedEOF for errors.Is, never io.EOF. Several concatenated streams (members, frames) are
// read as one, as the programs do. Trailing data is an error, although gzip, bzip2 and lzip (the programs) only warn.
// xz's padding and zstd's skippable frames belong to the formats and are accepted.
//
// Memory while reading, besides 64 KiB of input buffer:
//   - none: nothing; the bytes of r.
//   - gzip: 50 KiB.
//   - bzip2: 5 MiB.
//   - xz: the dictionary, refused above 64 MiB.
//   - lzip: the dictionary, but at most four times the data; refused above 64 MiB.
//   - zstd: the window, but at most the data, and 1 MiB; refused above 128 MiB. The next reader reuses the memory
//     unless it was garbage-collected.
//
// [Memory] returns the memory for a file. Readers don't start goroutines, and use one core.
func NewReader(name string, r io.Reader) (io.ReadCloser, error) {
	return NewReaderWithin(name, r, MaxMemory(name))
}

// NewReaderWithin is NewReader with a memory limit in bytes, as [Memory] counts them. Data that needs more, such as a
// later stream with a larger window, gives an [ErrTooLarge] before the memory is allocated. A reader with a higher limit,
// up to [MaxMemory], may read it.
func NewReaderWithin(name string, r io.Reader, memory int64) (io.ReadCloser, error) {
	return newReader(name, r, func(needed int64) bool { return needed <= memory })
}

// newReader is NewReaderWithin with a function that decides whether the reader may use that much memory.
func newReader(name string, r io.Reader, allow func(needed int64) bool) (io.ReadCloser, error) {
	if !Known(name) {
		return nil, ErrUnknown{Name: name, Allowed: slices.Clone(readable)}
	}
	if name == None {
		return &reader{src: r}, nil
	}
	in := bufio.NewReaderSize(r, inputBuffer)
	if _, err := in.Peek(1); err != nil {
		// Some decoders accept empty input, which is invalid in all formats.
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

// reader adds the name of the compression to the errors of a decoder, makes them sticky, and fails after Close.
type reader struct {
	src     io.Reader
	name    string
	release func() // returns src to its pool; may be nil
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
