package nars

import (
	"context"
	"errors"
	"io"
	"math"
	"os"
	"sync"
)

// unknownEnd is the end of a file of which the length is not known yet.
const unknownEnd = math.MaxInt64

// reader is one client's part of a downloaded file. It is a [bytestore.GrowingFile]. If the
// download fails because of this machine, the reader continues with the source.
type reader struct {
	ctx      context.Context
	f        *Fetcher
	download *download
	via      []string
	off      int64
	end      int64
	direct   io.ReadCloser // replaces the download
	left     sync.Once
}

func (r *reader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.direct == nil {
		n, err := r.fromDownload(p)
		if err == nil || !errors.Is(err, errLocal) {
			return n, err
		}
		// The file of the download has what was read so far: it is verified with the rest.
		if r.direct, err = r.f.options.Passing.Resume(r.ctx, r.download.item, r.download.n, r.download.file, r.off, r.via); err != nil {
			return 0, err
		}
	}
	n, err := r.direct.Read(p[:min(int64(len(p)), r.end-r.off)])
	r.off += int64(n)
	if err == io.EOF && r.off < r.end && r.end != unknownEnd {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// fromDownload waits for bytes of the download.
func (r *reader) fromDownload(p []byte) (int, error) {
	there, err := r.Next()
	if err != nil {
		return 0, err
	}
	n, err := r.download.file.ReadAt(p[:min(int64(len(p)), there)], r.off)
	r.off += int64(n)
	if n > 0 {
		return n, nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return 0, localError{err}
}

// Next implements [bytestore.GrowingFile].
func (r *reader) Next() (int64, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.direct != nil {
		return 0, errLocal
	}
	d := r.download
	var visible int64
	var failed error
	var atEnd bool
	err := d.mu.Wait(r.ctx, func() bool {
		visible, failed = d.visible(), d.err
		atEnd = d.verified && r.off >= d.size
		return visible > r.off || atEnd || failed != nil
	})
	switch {
	case err != nil:
		return 0, err
	case atEnd:
		return 0, io.EOF
	case visible <= r.off:
		return 0, failed
	}
	return min(visible, r.end) - r.off, nil
}

// Local implements [bytestore.LocalFile].
func (r *reader) Local() (*os.File, int64) { return r.download.file, r.off }

// Skip implements [bytestore.GrowingFile].
func (r *reader) Skip(n int64) { r.off += n }

// Close leaves the download, which continues without this reader.
func (r *reader) Close() (err error) {
	r.left.Do(func() {
		if r.direct != nil {
			err = r.direct.Close()
		}
		r.download.leave()
	})
	return err
}
