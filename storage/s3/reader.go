package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"nar-herder/storage/bytestore"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// mostResumed is how many connections in a row may fail without a byte.
	mostResumed = 3
	// copyPiece is how much WriteTo copies at a time.
	copyPiece = 256 << 10
)

var errStopped = errors.New("no byte received for too long")

// Open implements [bytestore.Store].
func (b *Bucket) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	if err := b.check("open", name); err != nil {
		return nil, bytestore.Info{}, err
	}
	if offset < 0 {
		return nil, bytestore.Info{}, fmt.Errorf("open %s in %s: negative offset %d", name, b, offset)
	}
	if length > math.MaxInt64-offset {
		length = -1
	}
	if length == 0 {
		info, err := b.Stat(ctx, name)
		return http.NoBody, info, err
	}
	r := &reader{b: b, ctx: ctx, name: name, offset: offset}
	found, err := r.connect(length, "")
	if status(err) == http.StatusRequestedRangeNotSatisfiable {
		// The offset is at or after the end, or the object is empty.
		found, err := b.look(ctx, name)
		if err == nil && found.Size > offset {
			err = &fault{text: fmt.Sprintf("the server has no bytes from %d on, of %d", offset, found.Size)}
		}
		if err != nil {
			return nil, bytestore.Info{}, b.explain("open", name, err)
		}
		return http.NoBody, found.Info, nil
	}
	if err != nil {
		return nil, bytestore.Info{}, b.explain("open", name, err)
	}
	r.object = found
	r.end = found.Size
	if length > 0 {
		r.end = min(found.Size, offset+length)
	}
	return r, found.Info, nil
}

// reader reads an object. It knows how many bytes to expect, and requests the rest if a
// connection ends early.
type reader struct {
	b    *Bucket
	ctx  context.Context
	name string
	object

	offset, end int64 // of the unread part
	body        io.ReadCloser
	cancel      context.CancelCauseFunc // cancels the request of body
	timer       *time.Timer             // calls cancel if the response or a Read takes too long
	answered    atomic.Bool
	sum         *summed // of the whole object, across requests; nil for none
	failures    int     // in a row
	err         error   // returned by all further Reads
}

// connect requests the unread part of the content with that ETag.
func (r *reader) connect(length int64, etag string) (object, error) {
	ctx, cancel := context.WithCancelCause(r.ctx)
	r.answered.Store(false)
	timer := time.AfterFunc(r.b.callTimeout, func() {
		if r.answered.Load() {
			cancel(errStopped)
		} else {
			cancel(errNoAnswer)
		}
	})
	body, found, err := r.b.get(ctx, r.name, r.offset, length, etag)
	if !timer.Stop() && err == nil {
		body.Close()
		err = &fault{text: errNoAnswer.Error()}
	}
	if err != nil {
		if errors.Is(context.Cause(ctx), errNoAnswer) {
			err = &fault{text: errNoAnswer.Error()}
		}
		cancel(nil)
		return object{}, err
	}
	r.answered.Store(true)
	if r.sum != nil {
		// The server sends no checksum for a range: continue that of the whole.
		r.sum.ReadCloser = body
		body = r.sum
	} else {
		r.sum, _ = body.(*summed)
	}
	r.body, r.cancel, r.timer = body, cancel, timer
	return found, nil
}

// disconnect ends the request.
func (r *reader) disconnect() {
	if r.body != nil {
		r.timer.Stop()
		// In this order: cancel closes a connection that could be reused.
		r.body.Close()
		r.cancel(nil)
		r.body = nil
	}
}

func (r *reader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.err == nil && r.offset < r.end {
		n, err := r.readOnce(p[:min(int64(len(p)), r.end-r.offset)])
		if n > 0 {
			r.offset += int64(n)
			r.failures = 0
			return n, nil
		}
		if err != nil {
			r.resume(err)
		}
	}
	if r.err != nil {
		return 0, r.err
	}
	return 0, io.EOF
}

// readOnce reads from the body, within the progress timeout. It returns the last bytes
// only after the checksum of the whole has matched.
func (r *reader) readOnce(p []byte) (int, error) {
	r.timer.Reset(r.b.progress)
	defer r.timer.Stop()
	n, err := r.body.Read(p)
	if n > 0 && r.offset+int64(n) == r.end {
		for err == nil {
			var more int
			if more, err = r.body.Read(make([]byte, 1)); more > 0 {
				err = nil
				break // the body continues: Open may have requested more
			}
		}
		if err != nil && err != io.EOF {
			// All bytes were received, so the checksum is wrong. Requesting the last
			// ones again would not verify it.
			r.err = fmt.Errorf("%w: %w", bytestore.ErrDamaged, r.b.fail("read", r.name, err))
			return 0, nil
		}
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// resume requests the rest after a failure, or sets r.err if that can't help.
func (r *reader) resume(cause error) {
	r.disconnect()
	for {
		if r.ctx.Err() != nil {
			r.err = r.b.fail("read", r.name, r.ctx.Err())
			return
		}
		if r.failures++; r.failures > mostResumed || r.etag == "" {
			r.err = r.broken(cause)
			return
		}
		if err := r.b.pause(r.ctx, r.failures); err != nil {
			continue // the context has ended
		}
		length := r.end - r.offset
		found, err := r.connect(length, r.etag)
		if err == nil && (found.etag != r.etag || found.Size != r.Size) {
			r.disconnect()
			err = &fault{text: "it was replaced while it was read"}
			r.err = r.b.fail("read", r.name, err)
			return
		}
		if err == nil {
			return
		}
		cause = err
		if status := status(err); status >= 400 && status < 500 {
			if status == http.StatusPreconditionFailed || isAbsent(err) {
				cause = &fault{text: "it was replaced or removed while it was read"}
			}
			// Not explain: a 404 may be about the old content.
			r.err = r.b.fail("read", r.name, cause)
			return
		}
	}
}

// broken returns the error for a body that ended early.
func (r *reader) broken(cause error) error {
	text := describe(cause)
	if cause == io.ErrUnexpectedEOF {
		text = "the connection ended"
	}
	return fmt.Errorf("read %s in %s: %w at byte %d of %d: %s", r.name, r.b, io.ErrUnexpectedEOF, r.offset, r.Size, oneLine(text))
}

// WriteTo implements [io.WriterTo] with a larger buffer than io.Copy's.
func (r *reader) WriteTo(w io.Writer) (written int64, err error) {
	buffer := copyBuffers.Get().(*[]byte)
	defer copyBuffers.Put(buffer)
	for {
		n, err := r.Read(*buffer)
		if n > 0 {
			m, err := w.Write((*buffer)[:n])
			written += int64(m)
			if err == nil && m < n {
				err = io.ErrShortWrite
			}
			if err != nil {
				return written, err
			}
		}
		if err == io.EOF {
			return written, nil
		}
		if err != nil {
			return written, err
		}
	}
}

var copyBuffers = sync.Pool{New: func() any { buffer := make([]byte, copyPiece); return &buffer }}

// Close cancels the request: reading the rest of the body would take longer than a new
// connection.
func (r *reader) Close() error {
	r.disconnect()
	if r.err == nil {
		r.err = fmt.Errorf("read %s in %s: it is closed", r.name, r.b)
	}
	return nil
}
