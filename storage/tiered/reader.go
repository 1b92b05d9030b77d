package tiered

import (
	"context"
	"errors"
	"fmt"
	"io"
	"nar-herder/storage/bytestore"
	"os"
	"sync"
)

// errSwitched means that a reader has switched to the store.
var errSwitched = errors.New("it is read from the storage itself")

// reader reads a part of a copy, which may still be being fetched: a
// [bytestore.GrowingFile]. If the copy fails, it continues with the store, if that still
// has the same content.
type reader struct {
	ctx    context.Context
	t      *Tiered
	e      *entry
	fill   *fill // nil if the copy was complete
	info   bytestore.Info
	off    int64
	end    int64
	file   *os.File      // set by the first Next
	direct io.ReadCloser // the store's reader, after the copy has failed
	left   sync.Once
}

func (r *reader) Read(p []byte) (int, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if len(p) == 0 {
		return 0, nil
	}
	if r.direct == nil {
		n, err := r.fromCopy(p)
		if n > 0 || r.ctx.Err() != nil || errors.Is(err, bytestore.ErrDamaged) {
			return n, err
		}
		if r.direct, err = r.openStore(err); err != nil {
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

// fromCopy waits for bytes of the copy and reads them.
func (r *reader) fromCopy(p []byte) (int, error) {
	there, err := r.Next()
	if err != nil {
		return 0, err
	}
	n, err := r.file.ReadAt(p[:min(int64(len(p)), there)], r.off)
	r.off += int64(n)
	if n > 0 {
		return n, nil
	}
	r.t.damaged(r.e, fmt.Errorf("read byte %d of the copy of %s: %w", r.off, r.info.Name, err))
	return 0, err
}

// openStore opens the rest in the store. why is the error of the copy, for the message if
// the store fails as well.
func (r *reader) openStore(why error) (io.ReadCloser, error) {
	direct, now, err := r.t.Store.Open(r.ctx, r.info.Name, r.off, r.end-r.off)
	if err == nil && !sameContent(now, r.info) {
		direct.Close()
		err = errReplaced
	}
	if err != nil {
		return nil, fmt.Errorf("read %s in storage %s from byte %d on, after its cache has failed (%v): %w", r.info.Name, r.t.Store, r.off, why, err)
	}
	return direct, nil
}

// Next implements [bytestore.GrowingFile].
func (r *reader) Next() (int64, error) {
	if r.off >= r.end {
		return 0, io.EOF
	}
	if r.direct != nil {
		return 0, errSwitched
	}
	there := r.end
	if f := r.fill; f != nil {
		f.start()
		var failed error
		err := f.wait(r.ctx, func() bool {
			there, failed = min(f.have, r.end), f.err
			return there > r.off || failed != nil
		})
		if err != nil {
			return 0, err
		}
		if there <= r.off {
			return 0, failed
		}
	}
	if r.file == nil {
		r.t.mu.Lock()
		r.file = r.e.file
		r.t.mu.Unlock()
	}
	return there - r.off, nil
}

// Local implements [bytestore.LocalFile].
func (r *reader) Local() (*os.File, int64) { return r.file, r.off }

// Skip implements [bytestore.GrowingFile].
func (r *reader) Skip(n int64) { r.off += n }

// Close releases the copy. A fetch continues without this reader.
func (r *reader) Close() (err error) {
	r.left.Do(func() {
		if r.direct != nil {
			err = r.direct.Close()
		} else if r.file != nil && r.off < r.end && (r.fill == nil || r.fill.position() > r.off) {
			// The client has left, or sendfile(2) could not read the file. If
			// it is unreadable, drop the copy.
			if _, err := r.file.ReadAt(make([]byte, 1), r.off); err != nil {
				r.t.damaged(r.e, fmt.Errorf("read byte %d of the copy of %s: %w", r.off, r.info.Name, err))
			}
		}
		r.t.leave(r.e)
	})
	return err
}
