// Package narcheck compares bytes, in any compression, with the nar that a narinfo describes.
package narcheck

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"nar-herder/narinfo"
)

// Decoder decompresses a file. compression is the narinfo's name for it, and size is the
// expected number of bytes, -1 if unknown. It may wait for memory until the context ends; its
// readers hold that memory until they are closed. Its readers verify the checksums of the
// format, and that nothing follows. [ErrUnreadable] says nothing about the bytes.
type Decoder func(ctx context.Context, compression string, compressed io.Reader, size int64) (io.ReadCloser, error)

// MarkUnreadable wraps the result of opening a decompressor. It marks errors of opening it and
// of its reads as [ErrUnreadable] if refused reports them.
func MarkUnreadable(r io.ReadCloser, err error, refused func(error) bool) (io.ReadCloser, error) {
	m := marked{r, refused}
	if err != nil {
		return nil, m.mark(err)
	}
	return m, nil
}

type marked struct {
	io.ReadCloser
	refused func(error) bool
}

func (m marked) Read(p []byte) (int, error) {
	n, err := m.ReadCloser.Read(p)
	return n, m.mark(err)
}

func (m marked) mark(err error) error {
	if err != nil && err != io.EOF && m.refused(err) {
		return fmt.Errorf("%w: %w", ErrUnreadable, err)
	}
	return err
}

var (
	// ErrUnreadable says that this program can't read a file that may be good: its
	// compression is unknown, or needs too much memory.
	ErrUnreadable = errors.New("can't be read by this program")
	// ErrWrongNar says that bytes are certainly not the nar that the narinfo
	// describes.
	ErrWrongNar = errors.New("not the nar that the narinfo describes")
)

// MaxUnsized is the largest nar, in bytes, that is accepted from another machine when
// its narinfo does not say its size.
const MaxUnsized = 4 << 30

// MaxFileSize returns the maximum size of a file with the nar in any compression.
func MaxFileSize(n *narinfo.Narinfo) int64 {
	size := n.NarSize
	if size < 0 {
		size = MaxUnsized
	}
	return size + size/8 + 64<<10
}

// copyBuffer is how much is decompressed at a time.
const copyBuffer = 256 << 10

// Check reads an item's Nth file to its end. It returns nil if the file is the nar,
// [ErrWrongNar] if it certainly isn't, and another error if that is unknown. It decompresses no
// more bytes than the nar has.
func Check(ctx context.Context, n *narinfo.Narinfo, file int, from io.Reader, decode Decoder) error {
	source := &ErrReader{R: from}
	sum := NewSum(ctx, n)
	reader, err := decode(ctx, n.Files[file].Compression, source, n.NarSize)
	if err == nil {
		defer reader.Close()
		// The struct hides WriteTo, which would bypass the buffer.
		_, err = io.CopyBuffer(sum, struct{ io.Reader }{reader}, make([]byte, copyBuffer))
	}
	if err == nil {
		err = sum.Result()
	}
	switch {
	case source.Err != nil:
		return source.Err // the decoder's error may hide it
	case ctx.Err() != nil:
		return ctx.Err()
	case err == nil, errors.Is(err, ErrUnreadable), errors.Is(err, ErrWrongNar):
		return err
	}
	return fmt.Errorf("%w: %w", ErrWrongNar, err)
}

// ErrReader keeps the error of reading. It is about the disk or the network; other errors of a
// decoder are about the bytes.
type ErrReader struct {
	R   io.Reader
	Err error
}

func (r *ErrReader) Read(p []byte) (int, error) {
	n, err := r.R.Read(p)
	if err != nil && err != io.EOF {
		r.Err = err
	}
	return n, err
}

// Sum is a writer that compares the bytes of a nar with a narinfo.
type Sum struct {
	ctx    context.Context
	want   *narinfo.Narinfo
	sha256 hash.Hash
	size   int64
}

// NewSum begins a comparison. Writes fail after the context has ended.
func NewSum(ctx context.Context, want *narinfo.Narinfo) *Sum {
	return &Sum{ctx: ctx, want: want, sha256: sha256.New()}
}

// Write adds decompressed bytes. The error is [ErrWrongNar] as soon as there are more than the
// nar has.
func (s *Sum) Write(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	s.size += int64(len(p))
	switch {
	case s.want.NarSize >= 0 && s.size > s.want.NarSize:
		return 0, fmt.Errorf("%w: it has more than %d bytes", ErrWrongNar, s.want.NarSize)
	case s.want.NarSize < 0 && s.size > MaxUnsized:
		return 0, fmt.Errorf("%w: its narinfo has no NarSize, and it has more than %d bytes", ErrUnreadable, int64(MaxUnsized))
	}
	return s.sha256.Write(p)
}

// Result returns nil if the written bytes are the nar, and [ErrWrongNar] if they are not.
func (s *Sum) Result() error {
	if s.want.NarSize >= 0 && s.size != s.want.NarSize {
		return fmt.Errorf("%w: it has %d bytes, should have %d", ErrWrongNar, s.size, s.want.NarSize)
	}
	if got := narinfo.NarHash(s.sha256.Sum(nil)); got != s.want.NarHash {
		return fmt.Errorf("%w: its hash is %s, should be %s", ErrWrongNar, got, s.want.NarHash)
	}
	return nil
}
