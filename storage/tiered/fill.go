package tiered

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"nar-herder/internal/notify"
	"nar-herder/storage/bytestore"
)

const (
	// piece is how much is fetched at a time.
	piece = 256 << 10
	// block is the assumed block size of the file system.
	block = 4 << 10
	// mostCuts is how often a fetch resumes after the store has failed.
	mostCuts = 5
	// writtenOut is the size from which on a file is written to disk while it is fetched.
	writtenOut = 64 << 20
)

// Errors that end a fill.
var (
	errUnwanted = errors.New("no reader needs it any more")
	errStalled  = errors.New("no byte received for too long")
	errReplaced = errors.New("it was replaced while it was read")
	errNoRoom   = errors.New("all copies in the cache are in use")
)

// localError is an error of the cache's disk, not of the store.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// fill fetches one content into the cache.
type fill struct {
	name string
	// wanted is how many bytes the first reader needs; all if it is negative.
	wanted int64
	// ctx is the context of the store's reader. Closing the cache cancels it until
	// detach; then the passedReader does.
	ctx    context.Context
	cancel context.CancelCauseFunc
	// detach returns false if the cache was closed before.
	detach func() bool
	// read is closed at the first Read, and begun is set.
	read  chan struct{}
	begun atomic.Bool
	// over means that the fill has ended, or has passed its reader on. The mutex of
	// Tiered guards it.
	over bool

	mu   notify.Mutex // of the following fields
	open bool         // the store's Open has succeeded
	have int64        // bytes that can be read
	// err is why the fill ended early. Before open, it is the error of Open.
	err error
	// passed is the store's reader if the content isn't cached, for the first reader.
	passed     *passedReader
	passedInfo bytestore.Info
}

func newFill(ctx context.Context, name string, wanted int64) *fill {
	f := &fill{name: name, wanted: wanted, read: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	f.detach = context.AfterFunc(ctx, func() { f.cancel(context.Cause(ctx)) })
	return f
}

// wait waits until the condition is true. It calls it with the mutex held.
func (f *fill) wait(ctx context.Context, condition func() bool) error {
	if f.mu.Wait(ctx, condition) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// opened waits for the store's Open.
func (f *fill) opened(ctx context.Context) error {
	var failed error
	err := f.wait(ctx, func() bool {
		if !f.open {
			failed = f.err
		}
		return f.open || failed != nil
	})
	if err == nil {
		err = failed
	}
	return err
}

func (f *fill) position() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.have
}

// fail sets the error, unless there is one. Bytes in the file remain readable.
func (f *fill) fail(err error) {
	f.mu.Set(func() {
		if f.err == nil {
			f.err = err
		}
	})
}

// expire fails the fill after the progress timeout. It doesn't wait for the store, which
// may ignore the cancellation.
func (f *fill) expire() {
	f.fail(errStalled)
	f.cancel(errStalled)
}

// start is called before each read.
func (f *fill) start() {
	if !f.begun.Load() && f.begun.CompareAndSwap(false, true) {
		close(f.read)
	}
}

// takePassed returns passed once.
func (f *fill) takePassed() (*passedReader, bytestore.Info) {
	f.mu.Lock()
	defer f.mu.Unlock()
	passed := f.passed
	f.passed = nil
	return passed, f.passedInfo
}

// fetch runs a fill. It is a user of the entry.
func (t *Tiered) fetch(e *entry, f *fill) {
	// After leave, which releases the disk space.
	defer func() {
		t.mu.Lock()
		t.fills--
		t.mu.Unlock()
	}()
	defer t.leave(e)
	err := t.fetchInto(e, f)
	if err == nil {
		t.troubles.Over(t.log, "the cache of the storage works again", "directory", t.directory)
	}
	t.mu.Lock()
	f.over = true
	if err != nil {
		t.forget(e)
	}
	t.mu.Unlock()
	if err == errDirect {
		return // the first reader owns passed, and cancels it
	}
	f.detach()
	f.cancel(err)
	if err != nil {
		f.fail(err)
		if err != errUnwanted && t.ctx.Err() == nil {
			t.metrics.failures.Add(1)
		}
		if err == errNoRoom {
			t.mu.Lock()
			t.quietUntil = t.now().Add(noRoomFor)
			t.mu.Unlock()
		}
		if errors.Is(err, bytestore.ErrDamaged) {
			t.log.Error("a nar is damaged in the storage: clients get it incomplete: find and repair damaged nars with 'nar-herder check --verify --repair'", "file", f.name, "error", err)
		}
		var local localError
		if errors.As(err, &local) {
			t.trouble(fmt.Errorf("cache %s: %w", f.name, err))
		}
	}
}

func (t *Tiered) fetchInto(e *entry, f *fill) error {
	expired := time.AfterFunc(t.stalled, f.expire)
	// Always all of it: a store may have a checksum of the whole.
	source, info, err := t.Store.Open(f.ctx, f.name, 0, -1)
	if !expired.Stop() && err == nil {
		source.Close()
		err = errStalled
	}
	if err != nil {
		if f.ctx.Err() != nil {
			return context.Cause(f.ctx)
		}
		return err
	}
	size := info.Size
	wanted := size
	if f.wanted >= 0 {
		wanted = min(wanted, f.wanted)
	}
	c, ok := contentOf(info)
	if !ok || size > t.max/largest || 2*wanted < size {
		return t.pass(e, f, source, info)
	}
	s := &fillSource{t: t, f: f, info: info, ReadCloser: source}
	defer func() { s.Close() }()
	t.mu.Lock()
	e.content = c
	t.mu.Unlock()
	f.mu.Set(func() { f.open = true })
	// Fetch only if something is read: some callers only need the Info.
	select {
	case <-f.read:
	case <-f.ctx.Done():
		return context.Cause(f.ctx)
	}
	return t.keep(e, f, s)
}

// pass passes the store's reader and its context on to the first reader. If that has left
// already, the last user of the entry closes it. The error is errDirect, or that of a
// closed cache.
func (t *Tiered) pass(e *entry, f *fill, source io.ReadCloser, info bytestore.Info) error {
	if !f.detach() {
		source.Close()
		return context.Cause(t.ctx)
	}
	passed := &passedReader{ReadCloser: source, cancel: f.cancel, stop: func() bool { return false }}
	t.mu.Lock()
	t.forget(e)
	// Now leave must not cancel the context.
	f.over = true
	t.mu.Unlock()
	f.mu.Set(func() { f.passed, f.passedInfo, f.err = passed, info, errDirect })
	return errDirect
}

// openAgain opens the rest of the content, or returns errReplaced.
func (t *Tiered) openAgain(f *fill, info bytestore.Info, offset int64) (io.ReadCloser, error) {
	source, now, err := t.Store.Open(f.ctx, f.name, offset, -1)
	if err == nil && !sameContent(now, info) {
		source.Close()
		err = errReplaced
	}
	if err != nil {
		return nil, fmt.Errorf("read %s in storage %s from byte %d on: %w", f.name, t.Store, offset, err)
	}
	return source, nil
}

// fillSource reads a content from the store, and resumes after failures.
type fillSource struct {
	io.ReadCloser
	t       *Tiered
	f       *fill
	info    bytestore.Info
	off     int64
	cutAt   int64
	cuts    int
	expired *time.Timer
}

func (s *fillSource) Read(p []byte) (int, error) {
	for {
		if s.expired == nil {
			s.expired = time.AfterFunc(s.t.stalled, s.f.expire)
		} else {
			s.expired.Reset(s.t.stalled)
		}
		n, err := s.ReadCloser.Read(p)
		s.expired.Stop()
		s.off += int64(n)
		if err == io.EOF && s.off < s.info.Size {
			err = io.ErrUnexpectedEOF
		}
		if n > 0 || err == nil || err == io.EOF {
			return n, nilIfRead(n, err)
		}
		if s.f.ctx.Err() != nil {
			return 0, context.Cause(s.f.ctx)
		}
		if errors.Is(err, bytestore.ErrDamaged) {
			return 0, err
		}
		if s.cuts++; s.cuts > mostCuts || s.cuts > 1 && s.off == s.cutAt {
			return 0, fmt.Errorf("read %s in storage %s at byte %d: %w", s.f.name, s.t.Store, s.off, err)
		}
		s.cutAt = s.off
		again, openErr := s.t.openAgain(s.f, s.info, s.off)
		if openErr != nil {
			return 0, openErr
		}
		s.ReadCloser.Close()
		s.ReadCloser = again
	}
}

// nilIfRead defers an error to the next Read.
func nilIfRead(n int, err error) error {
	if n > 0 {
		return nil
	}
	return err
}
