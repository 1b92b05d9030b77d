package nars

import (
	"context"
	"errors"
	"fmt"

	"nar-herder/mirror/nars/spool"
	"nar-herder/storage"
)

// begin starts a flight of the item's Nth file, or returns the one that is under
// way. The caller has joined it, as a reader. The error is one of reserve,
// or errTooMany when too many are under way for clients.
func (f *Fetcher) begin(ctx context.Context, item *storage.Item, n int, asked bool, via []string) (*flight, error) {
	key := spool.Key(item, n)
	if fl := f.flying(key); fl != nil {
		return fl, nil
	}
	// Outside of the mutex, as it reads from the database: who comes second here
	// finds the other's flight below.
	left := f.spool.Release(key)
	launched := false
	defer func() {
		if !launched && left > 0 {
			f.spool.Retain(ctx, key, left) // or else the next DropStale removes it
		}
	}()
	room, err := f.reserve(ctx, max(sizeOf(item, n), 0), asked)
	if err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl := f.flights[key]; fl != nil {
		fl.join()
		room.Release()
		return fl, nil
	}
	switch {
	case f.closed:
		room.Release()
		return nil, errStopped
	case asked && f.asked >= mostAsked():
		room.Release()
		return nil, errTooMany
	}
	fl := &flight{item: item, n: n, key: key, via: via, asked: asked, room: room, size: -1, readers: 1,
		done: make(chan struct{})}
	f.launch(fl)
	launched = true
	return fl, nil
}

// errTooMany says that clients wait for too many nars already.
var errTooMany = errors.New("too many nars are being fetched for clients")

// flying joins the flight that is under way, if there is one.
func (f *Fetcher) flying(key string) *flight {
	f.mu.Lock()
	defer f.mu.Unlock()
	fl := f.flights[key]
	if fl != nil {
		fl.join()
	}
	return fl
}

// launch has a flight go. The mutex is held.
func (f *Fetcher) launch(fl *flight) {
	f.flights[fl.key] = fl
	if fl.asked {
		f.asked++
	}
	f.busy.Go(func() { f.fly(fl) })
}

// fly is a flight from its beginning to its end.
func (f *Fetcher) fly(fl *flight) {
	err := f.attempt(f.ctx, fl)
	if err == nil {
		fl.mu.Set(func() { fl.verified = true })
		err = f.keep(f.ctx, fl)
	}
	if f.ctx.Err() != nil && err != nil {
		err = fmt.Errorf("%w: %w", errStopped, err)
	}
	fl.mu.Lock()
	resumed := fl.resumed
	fl.mu.Unlock()
	anew := errors.Is(err, storage.ErrWrongNar) && resumed && !fl.again
	f.spool.Release(fl.key) // if it was counted by a caller that joined meanwhile
	if !isGoneOnWith(err) || !f.leaveSpool(fl) {
		if removeErr := spool.Drop(fl.file); removeErr != nil {
			f.log.Warn("a file in the spool can't be removed", "file", fl.key, "error", removeErr)
		}
	}
	spool.Unlock(fl.file)
	var next *flight
	f.mu.Lock()
	delete(f.flights, fl.key)
	if fl.asked {
		f.asked--
	}
	if anew && !f.closed {
		// It has the same room.
		next = &flight{item: fl.item, n: fl.n, key: fl.key, via: fl.via, asked: fl.asked, again: true, room: fl.room, size: -1,
			done: make(chan struct{})}
		f.launch(next)
	}
	f.mu.Unlock()
	if next != nil {
		f.log.Info("what had come of a nar earlier is wrong, and is fetched anew", "file", fl.item.FileName(fl.n), "error", err)
		err = fmt.Errorf("%w: %w", errAnew, err)
	} else {
		fl.room.Release()
		f.settle(fl, err)
	}
	fl.result = err
	if err == nil {
		err = errors.New("it is stored") // and nobody waits for more
	}
	fl.mu.Set(func() { fl.err = err })
	fl.end()
	close(fl.done)
}

// leaveSpool counts what the flight leaves in the spool. It returns false when nothing is
// to be left.
func (f *Fetcher) leaveSpool(fl *flight) bool {
	have, _ := fl.position()
	if f.ctx.Err() != nil {
		return true // the next start counts it
	}
	fl.room.Release()
	return have > 0 && f.spool.Retain(f.ctx, fl.key, have)
}

// isGoneOnWith says whether what has come is of use to the next flight.
func isGoneOnWith(err error) bool {
	switch {
	case err == nil, errors.Is(err, errStored), errors.Is(err, storage.ErrWrongNar), errors.Is(err, storage.ErrNotWanted), errors.Is(err, storage.ErrUnreadable), errors.Is(err, errNoRoom):
		return false
	}
	return !isFull(err) // then the room is needed
}

// keep stores what has come whole.
func (f *Fetcher) keep(ctx context.Context, fl *flight) error {
	if err := f.storage.Receive(ctx, fl.item, fl.n, fl.file); err != nil {
		if errors.Is(err, storage.ErrNotWanted) {
			return storage.ErrNotWanted
		}
		return localError{fmt.Errorf("store it: %w", err)}
	}
	return nil
}
