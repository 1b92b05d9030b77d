package tiered

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nar-herder/storage/bytestore"
)

const (
	// nearStart is the largest offset of a read that fetches the whole: the content of
	// a flat nar begins after a header.
	nearStart = 64 << 10
	// farAhead is the distance from which on a reader doesn't wait for a fetch.
	farAhead = 16 << 20
	// notes is the prefix of [bytestore.IdentityName] and [bytestore.OwnerName].
	notes = "nar-herder-"
)

// Errors of a read from a copy.
var (
	// errDirect means that the bytes must be read from the store.
	errDirect = errors.New("not through the cache")
	// errDropped means that the copy was wrong, and was dropped.
	errDropped = errors.New("the copy was dropped")
)

// Open implements [bytestore.Store]. A nar that is read completely, or for the most part,
// is fetched into the cache, and other readers share the fetch. The reader is a
// [bytestore.GrowingFile] then.
func (t *Tiered) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	// Identity and owner are never cached.
	if !strings.HasPrefix(name, notes) && offset >= 0 && !bytestore.IsDirect(ctx) {
		for range 2 { // again after a copy was dropped
			e, f, began := t.acquire(name, offset, length)
			if e == nil {
				break
			}
			reader, err := t.openCopy(ctx, e, f, began, name, offset, length)
			if err == nil {
				if began {
					t.metrics.misses.Add(1)
				} else {
					t.metrics.hits.Add(1)
				}
				return reader, reader.info, nil
			}
			var passed *passedReader
			var info bytestore.Info
			if began {
				passed, info = f.takePassed()
			}
			t.leave(e)
			if passed != nil {
				t.metrics.misses.Add(1)
				return t.handOver(ctx, passed, info, offset)
			}
			if err == errDirect {
				break
			}
			if err != errDropped {
				return nil, bytestore.Info{}, err
			}
		}
		t.metrics.misses.Add(1)
	}
	return t.Store.Open(ctx, name, offset, length)
}

// acquire makes the caller a user of the name's entry, and returns its fill if it is being
// fetched. began is true if the caller is the first reader. The entry is nil if the bytes
// must be read from the store.
func (t *Tiered) acquire(name string, offset, length int64) (e *entry, f *fill, began bool) {
	k := keyOf(name)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ready {
		return nil, nil, false
	}
	if e := t.entries[k]; e != nil {
		t.use(e)
		return e, e.fill, false
	}
	if length == 0 || offset > nearStart || t.fills >= t.mostFills || t.now().Before(t.quietUntil) {
		return nil, nil, false
	}
	f = newFill(t.ctx, name, length)
	// Two users: the caller and the fill.
	e = &entry{key: k, users: 2, live: &live{fill: f}, checked: t.seconds(t.now())}
	t.entries[k] = e
	t.fills++
	t.running.Go(func() { t.fetch(e, f) })
	return e, f, true
}

// openCopy opens a copy. The caller is a user of the entry, and must leave after an error.
func (t *Tiered) openCopy(ctx context.Context, e *entry, f *fill, began bool, name string, offset, length int64) (*reader, error) {
	var err error
	if f != nil {
		err = f.opened(ctx)
	}
	if err == nil && !began {
		err = t.validate(ctx, e, name)
	}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("open %s in storage %s: %w", name, t.Store, context.Cause(ctx))
	case err != nil && t.ctx.Err() != nil:
		return nil, errDirect
	case err != nil:
		return nil, err
	case f != nil && offset < e.content.size && offset > f.position()+farAhead:
		return nil, errDirect
	case f == nil:
		if err := t.openFile(e); err != nil {
			return nil, err
		}
	}
	end := e.content.size
	if length >= 0 && offset < end {
		end = min(end, offset+min(length, end))
	}
	return &reader{ctx: ctx, t: t, e: e, fill: f, info: e.content.info(name), off: offset, end: end}, nil
}

// openFile opens the file of a copy, and sets its time for the order after a restart. The
// caller is a user of the entry.
func (t *Tiered) openFile(e *entry) error {
	t.mu.Lock()
	now := t.now()
	open, touch := e.file != nil, t.seconds(now)-e.touched >= int32(touchEvery.Seconds())
	if touch {
		e.touched = t.seconds(now)
	}
	t.mu.Unlock()
	if touch {
		_ = os.Chtimes(t.path(e), now, now) // the order is approximate
	}
	if open {
		return nil
	}
	file, err := openCopyFile(t.path(e), e.content.size)
	switch {
	case errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM):
		return errDirect // the copy is good
	case err != nil:
		t.damaged(e, err)
		return errDropped
	}
	t.mu.Lock()
	other := e.file != nil // opened by another reader
	if !other {
		e.file = file
	}
	t.mu.Unlock()
	if other {
		file.Close()
	}
	return nil
}

// openCopyFile opens the file of a copy, and checks its size.
func openCopyFile(path string, size int64) (*os.File, error) {
	// Not os.Open, which would try to add the file to the poller.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	for err == unix.EINTR {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var stat unix.Stat_t
	if err = unix.Fstat(fd, &stat); err == nil && (stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != size) {
		err = fmt.Errorf("%s: its type or size has changed", path)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// damaged drops a copy that can't be read. A missing file is not an error of the disk.
func (t *Tiered) damaged(e *entry, err error) {
	t.drop(e)
	if !errors.Is(err, fs.ErrNotExist) {
		t.trouble(err)
	}
}

// handOver returns the store's reader of a fill that isn't cached to the first reader.
func (t *Tiered) handOver(ctx context.Context, passed *passedReader, info bytestore.Info, offset int64) (io.ReadCloser, bytestore.Info, error) {
	passed.stop = context.AfterFunc(ctx, func() { passed.cancel(context.Cause(ctx)) })
	if _, err := io.CopyN(io.Discard, passed.ReadCloser, min(offset, info.Size)); err != nil {
		passed.Close()
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, bytestore.Info{}, fmt.Errorf("open %s in storage %s: %w", info.Name, t.Store, err)
	}
	if _, ok := passed.ReadCloser.(bytestore.LocalFile); ok {
		return passedFile{passed}, info, nil
	}
	return passed, info, nil
}

// passedReader is the store's reader that was opened for a fill.
type passedReader struct {
	io.ReadCloser
	cancel context.CancelCauseFunc
	stop   func() bool
}

func (p *passedReader) Close() error {
	p.stop()
	err := p.ReadCloser.Close()
	p.cancel(nil)
	return err
}

// passedFile is a passedReader of a local file.
type passedFile struct{ *passedReader }

// Local implements [bytestore.LocalFile].
func (p passedFile) Local() (*os.File, int64) { return p.ReadCloser.(bytestore.LocalFile).Local() }
