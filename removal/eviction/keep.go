package eviction

import (
	"context"
	"errors"
	"slices"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/removal/pins"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// forgetEvery is how often items are looked for that nobody requests, and at least a tenth
	// of the time that they are kept.
	forgetEvery = time.Hour
	forgetShare = 10
	// lastAnswer is how long clients may keep a narinfo that was served although its upstream
	// could not be asked again.
	lastAnswer = time.Minute
)

// Run removes items that no client has requested for long, until the context ends.
func (e *Evictor) Run(ctx context.Context) {
	if e.options.Keep <= 0 {
		return
	}
	ticker := time.NewTicker(max(min(forgetEvery, e.options.Keep/forgetShare), time.Second))
	defer ticker.Stop()
	for {
		if err := e.Forget(ctx); err != nil && ctx.Err() == nil {
			e.log.Warn("can't remove items of upstreams that no client has requested for long: will retry", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Forget removes the items of upstreams that no client has requested for the time in the options,
// with their narinfos. The index doesn't record requests for narinfos. The first one after
// FreshUntil moves that, so an item counts as requested until then. Items with pins or tags stay.
func (e *Evictor) Forget(ctx context.Context) error {
	now := e.now()
	if added, err := e.index.LastAdded(ctx); err != nil || stamp.IsAhead(added, now) {
		return err // this clock may be the wrong one
	}
	pinned, err := pins.Read(ctx, e.index)
	if err != nil {
		return err
	}
	origins, err := e.origins(ctx)
	if err != nil {
		return err
	}
	f := &forgetting{Evictor: e, pinned: pinned, origins: origins, since: now.Add(-e.options.Keep - lastAnswer)}
	before := e.metrics.forgotten.Load()
	defer func() {
		if n := e.metrics.forgotten.Load() - before; n > 0 {
			e.log.Info("removed items of upstreams that no client has requested for long", "items", n)
		}
	}()
	for _, origin := range origins {
		for cursor, more := int64(0), true; more; {
			var hashes []narinfo.PathHash
			if hashes, more, err = e.index.Unrequested(ctx, origin, f.since, pinned.Closure(), &cursor, storage.BatchSize); err != nil {
				return err
			}
			begun := time.Now()
			if err := f.remove(ctx, hashes); errors.Is(err, pins.ErrChanged) {
				return nil // the next pass reads them
			} else if err != nil {
				return err
			}
			if err := pace.Sleep(ctx, time.Since(begun)); err != nil { // let others write
				return err
			}
		}
	}
	return nil
}

// forgetting is one pass of [Evictor.Forget].
type forgetting struct {
	*Evictor
	pinned  *pins.Set
	origins []int64
	since   time.Time
}

// remove removes some items. Those that have changed meanwhile wait for the next pass.
func (f *forgetting) remove(ctx context.Context, hashes []narinfo.PathHash) error {
	var items []*storage.Item
	err := f.index.View(ctx, func(tx *index.Tx) error {
		for _, hash := range hashes {
			row, err := f.unwanted(tx, hash)
			if errors.Is(err, index.ErrDamaged) || err == nil && row == nil {
				continue
			} else if err != nil {
				return err
			}
			if item, err := storage.NewItem(row); err == nil { // others report it
				items = append(items, item)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	unread, done := f.unread(items)
	defer done()
	if len(unread) == 0 {
		return nil
	}
	hashes = hashes[:0]
	for _, item := range unread {
		hashes = append(hashes, item.Hash)
	}
	removals, err := f.storage.RemoveAll(ctx, hashes, func(tx *index.Tx) error {
		if err := f.pinned.Guard(tx); err != nil {
			return err
		}
		for _, hash := range hashes {
			if row, err := f.unwanted(tx, hash); err != nil {
				return err
			} else if row == nil {
				return deletion.ErrOutdated
			}
		}
		return nil
	})
	if errors.Is(err, deletion.ErrOutdated) {
		return nil
	}
	for _, removal := range removals {
		if removal.Err == nil || removal.Left {
			f.metrics.forgotten.Add(1)
		}
		if removal.Left && f.logged.IsDue("left", f.now()) {
			f.log.Error("an item of an upstream was removed, and its nars could not be deleted", "error", removal.Err)
		}
	}
	return err
}

// unwanted returns the row of an item, or nil if the item stays, or was removed.
func (f *forgetting) unwanted(tx *index.Tx, hash narinfo.PathHash) (*index.Item, error) {
	row, err := tx.Item(hash)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	tags, err := tx.Tags(hash)
	if err != nil {
		return nil, err
	}
	wasUsed, err := f.wasUsed(tx, hash, f.since)
	if err != nil || wasUsed || len(tags) > 0 || !row.WithdrawnAt.IsZero() || !slices.Contains(f.origins, row.Origin) || row.FreshUntil.After(f.since) {
		return nil, err
	}
	return row, nil
}
