package nars

import (
	"context"
	"errors"
	"fmt"

	"nar-herder/mirror/nars/room"
	"nar-herder/mirror/nars/spool"
	"nar-herder/peer/failover"
	"nar-herder/storage"
	"nar-herder/storage/narcheck"
)

// begin starts a download of the item's Nth file or returns the running one, which the caller
// has joined as a reader. The error is one of reserve, or errTooMany if too many run for
// clients.
func (f *Fetcher) begin(ctx context.Context, item *storage.Item, n int, onDemand bool, via []string) (*download, error) {
	key := spool.Key(item, n)
	if d := f.join(key); d != nil {
		return d, nil
	}
	// Reserve without the mutex, because it reads from the database: a concurrent caller
	// finds the download below.
	left := f.spool.Release(key)
	launched := false
	defer func() {
		if !launched && left > 0 {
			f.spool.Retain(ctx, key, left) // or else the next DropStale removes it
		}
	}()
	share, err := f.reserve(ctx, max(sizeOf(item, n), 0), onDemand)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if d := f.downloads[key]; d != nil {
		d.join()
		share.Release()
		return d, nil
	}
	switch {
	case f.closed:
		share.Release()
		return nil, errStopped
	case onDemand && f.onDemand >= maxOnDemand():
		share.Release()
		return nil, errTooMany
	}
	d := &download{item: item, n: n, key: key, via: via, onDemand: onDemand, room: share, size: -1, readers: 1,
		done: make(chan struct{})}
	f.start(d)
	launched = true
	return d, nil
}

// reserve reserves room for a file of size bytes. The error is [room.ErrNone], or a fault of this
// machine.
func (f *Fetcher) reserve(ctx context.Context, size int64, onDemand bool) (*room.Share, error) {
	share, err := f.room.Reserve(ctx, size, onDemand)
	if err != nil && !errors.Is(err, room.ErrNone) && ctx.Err() == nil {
		err = localError{err}
	}
	return share, err
}

// grow enlarges the room of a download once the source has sent the file's length.
func (f *Fetcher) grow(ctx context.Context, d *download, size int64) error {
	share, err := f.reserve(ctx, size, d.onDemand)
	if err != nil {
		if errors.Is(err, room.ErrNone) {
			err = localError{err}
		}
		return err
	}
	d.room.Release()
	d.room = share
	return nil
}

// errTooMany reports that clients already wait for too many nars.
var errTooMany = errors.New("too many nars are being fetched for clients")

// join joins the running download, if there is one.
func (f *Fetcher) join(key string) *download {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.downloads[key]
	if d != nil {
		d.join()
	}
	return d
}

// start starts a download. The mutex is held.
func (f *Fetcher) start(d *download) {
	d.release = f.storage.Hold(d.item.Hash)
	f.downloads[d.key] = d
	if d.onDemand {
		f.onDemand++
	}
	f.busy.Go(func() { f.perform(d) })
}

// perform runs a download to its end.
func (f *Fetcher) perform(d *download) {
	err := f.attempt(f.ctx, d)
	if err == nil {
		d.mu.Set(func() { d.verified = true })
		err = f.keep(f.ctx, d)
	}
	if f.ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w: %w", errStopped, err)
	}
	anew := f.mustBeginAnew(d, err)
	f.spool.Release(d.key) // a caller that joined may have counted it again
	if !isResumable(err) || !f.leaveSpool(d) {
		if removeErr := spool.Drop(d.file); removeErr != nil {
			f.log.Warn("can't remove a file in the spool", "file", d.key, "error", removeErr)
		}
	}
	spool.Unlock(d.file)
	var next *download
	f.mu.Lock()
	delete(f.downloads, d.key)
	if d.onDemand {
		f.onDemand--
	}
	if anew && !f.closed {
		// It takes over the room.
		next = &download{item: d.item, n: d.n, key: d.key, via: d.via, onDemand: d.onDemand, again: d.again + 1, room: d.room, size: -1,
			done: make(chan struct{})}
		f.start(next)
	}
	f.mu.Unlock()
	if next != nil {
		if d.others {
			f.log.Warn("a server sent a wrong nar: it is fetched anew, from another server", "server", d.wrongFrom, "file", d.item.FileName(d.n), "error", err)
		} else {
			f.log.Info("the partial download of a nar was wrong: it is fetched anew", "file", d.item.FileName(d.n), "error", err)
		}
		err = fmt.Errorf("%w: %w", errAnew, err)
	} else {
		d.room.Release()
		f.finish(d, err)
	}
	d.result = err
	if err == nil {
		err = errors.New("it is stored") // readers need no more
	}
	d.mu.Set(func() { d.err = err })
	d.end()
	close(d.done)
}

// maxAnew is how many servers are asked for a file that was wrong at others.
const maxAnew = 2

// mustBeginAnew reports whether a new download may succeed at once: the answers of several
// servers, or of a server that has changed meanwhile, were not one file, or another server may
// have the right one.
func (f *Fetcher) mustBeginAnew(d *download, err error) bool {
	switch {
	case d.others:
		return d.again < maxAnew
	case errors.Is(err, narcheck.ErrWrongNar), errors.Is(err, failover.ErrDiffers):
		return d.isResumed() && d.again == 0
	}
	return false
}

// leaveSpool counts the partial download in the spool. It returns false if it is to be
// removed.
func (f *Fetcher) leaveSpool(d *download) bool {
	have, _ := d.position()
	if f.ctx.Err() != nil {
		return true // the next start counts it
	}
	d.room.Release()
	return have > 0 && f.spool.Retain(f.ctx, d.key, have)
}

// isResumable reports whether the next download may resume after an error.
func isResumable(err error) bool {
	switch {
	case err == nil, errors.Is(err, errStored), errors.Is(err, narcheck.ErrWrongNar), errors.Is(err, failover.ErrDiffers), errors.Is(err, storage.ErrNotWanted), errors.Is(err, narcheck.ErrUnreadable), errors.Is(err, room.ErrNone):
		return false
	}
	return !room.IsFull(err) // others need the room
}

// keep stores a complete download.
func (f *Fetcher) keep(ctx context.Context, d *download) error {
	if err := f.storage.Receive(ctx, d.item, d.n, d.file); err != nil {
		if errors.Is(err, storage.ErrNotWanted) {
			return storage.ErrNotWanted
		}
		return localError{fmt.Errorf("store it: %w", err)}
	}
	return nil
}
