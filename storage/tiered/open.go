package tiered

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"nar-herder/storage/bytestore"
	"os"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// nearStart is up to where a part begins that is worth a fetch of the whole: the
	// content of a flat nar begins behind a header.
	nearStart = 64 << 10
	// farAhead is from where on a reader does not wait for a fetch to get there.
	farAhead = 16 << 20
	// notes begins [bytestore.IdentityName] and [bytestore.OwnerName].
	notes = "nar-herder-"
)

// Errors that a try to read from a copy ends with.
var (
	// errDirect says that the bytes are to be read from the store behind.
	errDirect = errors.New("not through the cache")
	// errAnew says that the copy was not right, and is gone.
	errAnew = errors.New("the copy was dropped")
)

// Open implements [bytestore.Store]. What is opened whole, or for the most part,
// is fetched into the directory when it is read, and others read on from there. The
// reader is a [bytestore.GrowingFile] then.
func (t *Tiered) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	// What notes of this program say of the store must be so now, and from there.
	if !strings.HasPrefix(name, notes) && offset >= 0 {
		for range 2 { // the second for a copy that was dropped
			e, f, began := t.board(name, offset, length)
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
			if err != errAnew {
				return nil, bytestore.Info{}, err
			}
		}
		t.metrics.misses.Add(1)
	}
	return t.Store.Open(ctx, name, offset, length)
}

// board makes the caller a user of the name's entry, and returns its fill, if it is
// still being fetched. began says that it was begun for the caller. The entry is nil
// when the bytes are to be read from the store behind.
func (t *Tiered) board(name string, offset, length int64) (e *entry, f *fill, began bool) {
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
	// The caller and the fill.
	e = &entry{key: k, users: 2, live: &live{fill: f}, checked: t.seconds(t.now())}
	t.entries[k] = e
	t.fills++
	t.running.Go(func() { t.fetch(e, f) })
	return e, f, true
}

// openCopy opens a copy, of which the caller is a user. After an error it still is,
// and leaves.
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

// openFile opens the file of a copy, of which the caller is a user, and notes the
// use for the order after a restart.
func (t *Tiered) openFile(e *entry) error {
	t.mu.Lock()
	now := t.now()
	open, touch := e.file != nil, t.seconds(now)-e.touched >= int32(touchEvery.Seconds())
	if touch {
		e.touched = t.seconds(now)
	}
	t.mu.Unlock()
	if touch {
		_ = os.Chtimes(t.path(e), now, now) // it is but approximate
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
		return errAnew
	}
	t.mu.Lock()
	other := e.file != nil // another reader's, who was faster
	if !other {
		e.file = file
	}
	t.mu.Unlock()
	if other {
		file.Close()
	}
	return nil
}

// openCopyFile opens a file that should be a copy of that size.
func openCopyFile(path string, size int64) (*os.File, error) {
	// Package os would ask the kernel to watch it, which it can't.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	for err == unix.EINTR {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	var stat unix.Stat_t
	if err = unix.Fstat(fd, &stat); err == nil && (stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Size != size) {
		err = fmt.Errorf("%s: it is not as it was written", path)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// damaged drops a copy that can't be read. That somebody has removed it is no
// trouble.
func (t *Tiered) damaged(e *entry, err error) {
	t.drop(e)
	if !errors.Is(err, fs.ErrNotExist) {
		t.trouble(err)
	}
}

// handOver gives the caller what was opened for a fill and is not to be kept.
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

// passedReader is a reader of the store behind that was opened for a fill.
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

// passedFile is one of a file.
type passedFile struct{ *passedReader }

// Local implements [bytestore.LocalFile].
func (p passedFile) Local() (*os.File, int64) { return p.ReadCloser.(bytestore.LocalFile).Local() }
