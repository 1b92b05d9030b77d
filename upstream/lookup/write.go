package lookup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// writeDelay is how long Run collects items for a transaction, unless somebody waits.
	writeDelay = 100 * time.Millisecond
	// writeBatch bounds the items of a transaction.
	writeBatch = 1_000
	// writeTimeout is how long a request waits for its item to be written, or a question for
	// the writer.
	writeTimeout = 5 * time.Second
	// closeTimeout bounds [Finder.Close].
	closeTimeout = 900 * time.Millisecond
)

var writeRetry = pace.Backoff{First: time.Second, Last: 30 * time.Second}

// errTaken reports an item that can't be in the index.
var errTaken = errors.New("another item has the same first 64 bits")

// finding is an answer that is to be written.
type finding struct {
	*asked
	// narinfo is nil if the upstreams don't have the item any more.
	narinfo *narinfo.Narinfo
	origin  string
	until   time.Time
	// isNew means that the index didn't have the text. It is prepared in entry.
	isNew bool
	entry *index.Entry
}

// waitForWriter waits while many items are unwritten, unless the database fails.
func (f *Finder) waitForWriter() {
	ctx, cancel := context.WithTimeout(f.ctx, writeTimeout)
	defer cancel()
	_ = f.mu.Wait(ctx, func() bool { return f.failing || len(f.found) < f.limits.unwritten/2 })
}

// Run writes what was found until the context ends.
func (f *Finder) Run(ctx context.Context) {
	failures := 0
	for {
		select {
		case <-f.wake:
		case <-ctx.Done():
			return
		}
		delay := writeDelay
		if failures > 0 {
			delay = writeRetry.Jittered(failures)
		}
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-f.hurry:
			timer.Stop()
		case <-ctx.Done():
			timer.Stop()
			return
		}
		err := f.writeAll(ctx)
		if err == nil {
			if failures > 0 {
				f.repeats.Over(f.log, "items of upstreams are written to the database again")
			}
			failures = 0
			continue
		}
		if ctx.Err() != nil {
			return
		}
		failures++
		f.repeats.Log(f.log, slog.LevelWarn, time.Now(), "can't write items of upstreams to the database, and serve them from memory: will retry", "error", err)
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

// Close ends all questions, and writes for the last time. The context of Run has ended, but Run may
// still write. It takes less than a second.
func (f *Finder) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	f.mu.Set(func() { f.closed = true })
	f.end()
	// The source should end soon.
	within, stop := context.WithTimeout(ctx, closeTimeout/3)
	_ = f.mu.Wait(within, func() bool { return len(f.questions) == 0 })
	stop()
	if err := f.writeAll(ctx); err != nil {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.log.Warn("can't write items of upstreams at shutdown: they will be asked for again", "items", len(f.found), "error", err)
	}
}

// writeAll writes all that was found.
func (f *Finder) writeAll(ctx context.Context) error {
	select {
	case f.writing <- struct{}{}:
		defer func() { <-f.writing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	for {
		f.mu.Lock()
		hashes := f.order[:min(writeBatch, len(f.order))]
		batch := make([]*finding, len(hashes))
		for n, hash := range hashes {
			batch[n] = f.found[hash]
		}
		f.mu.Unlock()
		if len(batch) == 0 {
			return nil
		}
		err := f.write(ctx, hashes, batch)
		f.mu.Set(func() {
			if f.failing = err != nil; err != nil {
				return
			}
			f.order = f.order[len(batch):]
			for n, hash := range hashes {
				if f.found[hash] == batch[n] {
					delete(f.found, hash)
				} else {
					f.order = append(f.order, hash) // another answer has arrived meanwhile
				}
			}
		})
		if err != nil {
			return err
		}
	}
}

// write writes findings in one transaction.
func (f *Finder) write(ctx context.Context, hashes []narinfo.PathHash, batch []*finding) error {
	for _, found := range batch {
		if found.isNew && found.entry == nil {
			found.entry = f.storage.Index().Prepare(found.narinfo)
		}
	}
	var obsolete []string
	err := f.storage.Index().Update(ctx, func(tx *index.Tx) error {
		origins := make(map[string]int64)
		obsolete = nil
		for n, found := range batch {
			if _, ok := origins[found.origin]; !ok && found.narinfo != nil {
				number, err := tx.Origin(found.origin)
				if err != nil {
					return err
				}
				origins[found.origin] = number
			}
			names, err := f.put(tx, hashes[n], found, origins[found.origin])
			if errors.Is(err, index.ErrDamaged) || errors.Is(err, errTaken) {
				f.repeats.Log(f.log, slog.LevelWarn, time.Now(), "can't write an item of an upstream: it is asked for again", "error", err)
				continue
			}
			if err != nil {
				return fmt.Errorf("%s: %w", hashes[n], err)
			}
			obsolete = append(obsolete, names...)
		}
		if !f.storage.HasBytes() {
			return nil
		}
		return tx.AddPendingDeletes(obsolete)
	})
	if err != nil || len(obsolete) == 0 || !f.storage.HasBytes() {
		return err
	}
	if _, _, err := f.storage.DeleteUnclaimed(ctx, obsolete, 0); err != nil {
		f.log.Warn("files that no narinfo names any more could not be removed from the storage", "error", err)
	}
	return nil
}

// put writes a finding, and returns the names of the files that the row may no longer claim.
// Items that were imported, mirrored or removed here meanwhile stay as they are.
func (f *Finder) put(tx *index.Tx, hash narinfo.PathHash, found *finding, origin int64) (obsolete []string, err error) {
	row, err := tx.Item(hash)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		if found.entry == nil {
			return nil, nil // removed meanwhile
		}
		// An upstream can choose its hashes. Put would fail the transaction.
		if isTaken, err := tx.IsTaken(hash); err != nil {
			return nil, err
		} else if isTaken {
			return nil, fmt.Errorf("%s: %w", hash, errTaken)
		}
		return nil, tx.Put(f.entry(found, origin), nil)
	case err != nil:
		return nil, err
	case row.Origin == 0 || !row.WithdrawnAt.IsZero():
		return nil, nil
	case found.narinfo == nil:
		return nil, tx.SetOrigin(hash, row.Origin, found.until)
	case bytes.Equal(row.Text, found.narinfo.Text):
		return nil, tx.SetOrigin(hash, origin, found.until)
	case found.entry == nil:
		return nil, nil // replaced meanwhile
	}
	old, err := storage.NewItem(row)
	if err != nil {
		return nil, err
	}
	entry := f.entry(found, origin)
	storage.CarryStored(entry, old)
	return old.NarNames(), tx.Put(entry, row)
}

// entry returns the entry of a finding for one attempt to write it.
func (f *Finder) entry(found *finding, origin int64) *index.Entry {
	entry := *found.entry
	entry.AddedAt, entry.Origin, entry.FreshUntil = f.storage.Now(), origin, found.until
	return &entry
}
