package nars

import (
	"context"
	"errors"
	"io"
	"os"
	"sync"
)

// reader is one client's view of a flight: a part of the file. It is a
// [bytestore.GrowingFile]. Where the flight
// can't go on because of this machine, it goes on with the source itself.
type reader struct {
	ctx    context.Context
	f      *Fetcher
	flight *flight
	via    []string
	off    int64
	end    int64
	direct io.ReadCloser // in the place of the flight
	left   sync.Once
}

func (r *reader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.direct == nil {
		n, err := r.fromFlight(p)
		if err == nil || !errors.Is(err, errLocal) {
			return n, err
		}
		// What was read so far is in the file of the flight, and compared with the rest.
		before := io.NewSectionReader(r.flight.file, 0, r.off)
		if r.direct, err = r.f.options.Passing.Resume(r.ctx, r.flight.item, r.flight.n, before, r.off, r.via); err != nil {
			return 0, err
		}
	}
	n, err := r.direct.Read(p[:min(int64(len(p)), r.end-r.off)])
	r.off += int64(n)
	if err == io.EOF && r.off < r.end {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// fromFlight waits for bytes of the flight.
func (r *reader) fromFlight(p []byte) (int, error) {
	there, err := r.Next()
	if err != nil {
		return 0, err
	}
	n, err := r.flight.file.ReadAt(p[:min(int64(len(p)), there)], r.off)
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
	fl := r.flight
	var visible int64
	var failed error
	err := fl.mu.Wait(r.ctx, func() bool {
		visible, failed = fl.visible(), fl.err
		return visible > r.off || failed != nil
	})
	if err != nil {
		return 0, err
	}
	if visible <= r.off {
		return 0, failed
	}
	return min(visible, r.end) - r.off, nil
}

// Local implements [bytestore.LocalFile].
func (r *reader) Local() (*os.File, int64) { return r.flight.file, r.off }

// Skip implements [bytestore.GrowingFile].
func (r *reader) Skip(n int64) { r.off += n }

// Close lets the flight go, which goes on without this reader.
func (r *reader) Close() (err error) {
	r.left.Do(func() {
		if r.direct != nil {
			err = r.direct.Close()
		}
		r.flight.leave()
	})
	return err
}
