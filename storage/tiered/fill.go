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
	// block is what a file takes of the disk beyond its length, at the most.
	block = 4 << 10
	// mostCuts is how often one fetch goes on after the store behind has failed.
	mostCuts = 5
	// writtenOut is the length from which on a file is written out while it comes.
	writtenOut = 64 << 20
)

// Errors that a fill ends with.
var (
	errUnwanted = errors.New("nobody wants it any more")
	errStalled  = errors.New("nothing has come for too long")
	errReplaced = errors.New("it was replaced meanwhile")
	errNoRoom   = errors.New("all in the cache is in use")
)

// localError is an error of this machine, and not of the store behind.
type localError struct{ error }

func (e localError) Unwrap() error { return e.error }

// fill is the way of one content into the directory.
type fill struct {
	name string
	// wanted is how many bytes whoever began it wants; all when negative.
	wanted int64
	// ctx is what the store behind is read with. It ends with cancel, which Close
	// of the cache calls too until detach, and whoever reads what was passed on
	// calls after that.
	ctx    context.Context
	cancel context.CancelCauseFunc
	// detach is false when the cache was closed before.
	detach func() bool
	// read is closed when somebody reads, and begun says so.
	read  chan struct{}
	begun atomic.Bool
	// over says that nothing is fetched any more, or that what was opened is not
	// for this fill to end. The mutex of Tiered guards it.
	over bool

	mu   notify.Mutex // of what follows
	open bool         // the store behind has answered
	have int64        // bytes that can be read
	// err is why no more will come. Before open, it is what Open returns.
	err error
	// passed is what was opened, and is not kept, for who began.
	passed     *passedReader
	passedInfo bytestore.Info
}

func newFill(ctx context.Context, name string, wanted int64) *fill {
	f := &fill{name: name, wanted: wanted, read: make(chan struct{})}
	f.ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	f.detach = context.AfterFunc(ctx, func() { f.cancel(context.Cause(ctx)) })
	return f
}

// wait waits until the condition, which is asked with the mutex held, is true.
func (f *fill) wait(ctx context.Context, condition func() bool) error {
	if f.mu.Wait(ctx, condition) != nil {
		return context.Cause(ctx)
	}
	return nil
}

// opened waits until it is known what the name has.
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

// fail ends it, unless it has ended. What is in the file stays good to be read.
func (f *fill) fail(err error) {
	f.mu.Set(func() {
		if f.err == nil {
			f.err = err
		}
	})
}

// expire ends it at once for those who wait: the store may not end when it is told
// to.
func (f *fill) expire() {
	f.fail(errStalled)
	f.cancel(errStalled)
}

// start is called by who reads.
func (f *fill) start() {
	if !f.begun.Load() && f.begun.CompareAndSwap(false, true) {
		close(f.read)
	}
}

// takePassed returns what was opened and is not kept, once.
func (f *fill) takePassed() (*passedReader, bytestore.Info) {
	f.mu.Lock()
	defer f.mu.Unlock()
	passed := f.passed
	f.passed = nil
	return passed, f.passedInfo
}

// fetch is what a fill does. It is a user of the entry.
func (t *Tiered) fetch(e *entry, f *fill) {
	// After leave, so that all that a fetch took is given back when it is no
	// longer counted.
	defer func() {
		t.mu.Lock()
		t.fills--
		t.mu.Unlock()
	}()
	defer t.leave(e)
	err := t.fetchInto(e, f)
	t.mu.Lock()
	f.over = true
	if err != nil {
		t.forget(e)
	}
	t.mu.Unlock()
	if err == errDirect {
		return // the reader that began it reads what was opened, and cancels it
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
			t.log.Error("a nar has changed since it was stored, and is cut off before its end: see 'nar-herder help check' for its --verify and --repair", "file", f.name, "error", err)
		}
		var local localError
		if errors.As(err, &local) {
			t.trouble(fmt.Errorf("keep %s: %w", f.name, err))
		}
	}
}

func (t *Tiered) fetchInto(e *entry, f *fill) error {
	expired := time.AfterFunc(t.stalled, f.expire)
	// All of it, whatever is wanted: a store may have a checksum of the whole.
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
	// Who asks for no more than what there is gets it without a fetch.
	select {
	case <-f.read:
	case <-f.ctx.Done():
		return context.Cause(f.ctx)
	}
	return t.keep(e, f, s)
}

// pass leaves what was opened, and its context, to the reader that began the fill.
// If that has left already, the last user of the entry closes it. The error is
// errDirect, or that the cache was closed.
func (t *Tiered) pass(e *entry, f *fill, source io.ReadCloser, info bytestore.Info) error {
	if !f.detach() {
		source.Close()
		return context.Cause(t.ctx)
	}
	passed := &passedReader{ReadCloser: source, cancel: f.cancel, stop: func() bool { return false }}
	t.mu.Lock()
	t.forget(e)
	// From here on, leave must not cancel the context: it is the reader's.
	f.over = true
	t.mu.Unlock()
	f.mu.Set(func() { f.passed, f.passedInfo, f.err = passed, info, errDirect })
	return errDirect
}

// openAgain opens the rest of a content, if it is still that.
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

// fillSource reads a content from the store behind, and goes on after failures.
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

// nilIfRead leaves an error for the next Read.
func nilIfRead(n int, err error) error {
	if n > 0 {
		return nil
	}
	return err
}
