// Package deletion carries out what package removal has decided: it deletes nars of
// items that stay, hides items from clients, and deletes them when their grace has ended.
package deletion

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// A Guard re-validates a decision inside the write transaction. changed are the items that
// have changed since the decision. Its error ends the transaction and is returned.
type Guard func(tx *index.Tx, changed map[narinfo.PathHash]index.ChangeKind) error

// ErrOutdated says that a decision may be outdated.
var ErrOutdated = errors.New("the index has changed since it was read")

// ErrDeletionFails says that several files could not be deleted for no reason known
// beforehand: more would fail. It comes with [storage.ErrNotDeleted].
var ErrDeletionFails = errors.New("deletion fails")

// fewLeft is how many files may fail without that error: a request to a bucket can fail,
// or an object be locked.
const fewLeft = 4

// Evict deletes the bytes of items but keeps their rows, since others have the nars. since
// is the number of the last change when the items were read: it skips items that have
// changed later. If it is known beforehand that a file can't be deleted, it changes
// nothing.
//
// Rows are changed first: if bytes can't be deleted, no row claims them any more, and the
// error is [storage.ErrNotDeleted]. evicted are the items without files, also after an
// error.
func Evict(ctx context.Context, s *storage.Storage, items []*storage.Item, since int64, guard Guard) (evicted []*storage.Item, freed storage.Freed, err error) {
	if err := s.MayDelete(ctx); err != nil {
		return nil, storage.Freed{}, err
	}
	if err := s.MayDrop(items...); err != nil {
		return nil, storage.Freed{}, err
	}
	var names []string
	read := since
	err = s.Index().Reclaim(ctx, func(tx *index.Tx) error {
		names, evicted = nil, nil
		changed, last, complete, err := tx.ChangedSince(read)
		if err != nil {
			return err
		}
		if !complete {
			return ErrOutdated
		}
		if err := guard(tx, changed); err != nil {
			return err
		}
		for _, item := range items {
			if _, hasChanged := changed[item.Hash]; hasChanged || item.Stored == 0 {
				continue
			}
			if err := tx.Unstore(item.Item, item.Narinfo, s.Now()); err != nil {
				return err
			}
			names = append(names, item.NarNames()...)
			evicted = append(evicted, item)
		}
		if err := tx.AddPendingDeletes(names); err != nil {
			return err
		}
		since = last + int64(len(evicted)) // with its own changes
		return nil
	})
	if err != nil {
		return nil, storage.Freed{}, err
	}
	dropped, left, err := s.DeleteUnclaimed(ctx, names, since)
	return evicted, storage.Freed{Items: len(evicted) - left, Size: dropped.Size, Usage: dropped.Usage}, err
}

// Withdraw is [storage.Storage.WithdrawAll] for items that must not have changed since the
// change with the given number. Otherwise the error is [ErrOutdated], or
// [storage.ErrNotDeleted] if it is known that a file could not be deleted later. It
// returns the items that were not withdrawn before.
func Withdraw(ctx context.Context, s *storage.Storage, items []*storage.Item, since int64, guard Guard) (withdrawn []*storage.Item, err error) {
	if err := s.MayDrop(items...); err != nil {
		return nil, err
	}
	hashes := make([]narinfo.PathHash, len(items))
	for i, item := range items {
		hashes[i] = item.Hash
	}
	removals, err := s.WithdrawAll(ctx, hashes, func(tx *index.Tx) error {
		changed, _, complete, err := tx.ChangedSince(since)
		if err != nil {
			return err
		}
		for _, hash := range hashes {
			if _, hasChanged := changed[hash]; hasChanged || !complete {
				return ErrOutdated
			}
		}
		return guard(tx, changed)
	})
	if err != nil {
		return nil, err
	}
	for i, removal := range removals {
		if removal.Err == nil && removal.WithdrawnAt.IsZero() {
			withdrawn = append(withdrawn, items[i])
		}
	}
	return withdrawn, nil
}

// RemoveWithdrawn removes the withdrawn items that may be deleted at the given time, rows
// and bytes. If it is known beforehand that a file can't be deleted, its item stays, the
// others are removed, and the error is [storage.ErrNotDeleted].
func RemoveWithdrawn(ctx context.Context, s *storage.Storage, now time.Time) (freed storage.Freed, err error) {
	var stuck error // the first of an item that stays
	var cursor index.WithdrawnCursor
	for more := true; more; {
		var items []*index.Item
		if items, more, err = s.Index().WithdrawnPage(ctx, now, &cursor, storage.BatchSize); err != nil {
			return freed, err
		}
		if len(items) == 0 {
			continue
		}
		// If the storage isn't mounted, all files seem to be deleted. A front end deletes
		// none.
		if !s.IsReadOnly() {
			if _, err := s.Identity(ctx); err != nil {
				return freed, err
			}
		}
		var names []string
		var removed int
		var last int64
		var kept error
		err = s.Index().Reclaim(ctx, func(tx *index.Tx) error {
			names, removed, kept = nil, 0, nil
			for _, was := range items {
				row, err := tx.Item(was.Hash)
				if errors.Is(err, storage.ErrNotFound) {
					continue
				} else if err != nil {
					return err
				}
				if row.WithdrawnAt.IsZero() || row.DeleteAfter.After(now) {
					continue // it was added again meanwhile
				}
				if !s.HasBytes() && row.Stored != 0 {
					kept = cmp.Or(kept, fmt.Errorf("remove what was withdrawn: %w: name it with --storage", storage.ErrElsewhere))
					continue
				}
				item, err := storage.NewItem(row)
				if err != nil {
					return err
				}
				if err := s.MayDrop(item); err != nil {
					kept = cmp.Or(kept, err)
					continue
				}
				if err := tx.Remove(item.Hash, s.Now()); err != nil {
					return err
				}
				names = append(names, item.NarNames()...)
				removed++
			}
			if last, err = tx.LastChange(); err != nil {
				return err
			}
			if !s.HasBytes() {
				return nil
			}
			return tx.AddPendingDeletes(names)
		})
		if err != nil {
			return freed, err
		}
		// The rows are deleted: a file that is not deleted now stays until the next start.
		longer, cancel := linger.Context(ctx, linger.Second)
		dropped, left, err := s.DeleteUnclaimed(longer, names, last)
		cancel()
		freed.Items += removed - left
		freed.Size += dropped.Size
		freed.Usage += dropped.Usage
		if err != nil {
			return freed, err
		}
		stuck = cmp.Or(stuck, kept)
	}
	return freed, stuck
}

// DeletePending deletes files that a process was about to delete when it ended. It
// continues after errors. The error is [ErrDeletionFails] if nothing more should be
// removed.
func DeletePending(ctx context.Context, s *storage.Storage) (dropped storage.Freed, err error) {
	var failure error // the first
	unforeseen := 0
	left := func(err error) error {
		if unforeseen > fewLeft {
			failure = fmt.Errorf("%w: %w", ErrDeletionFails, failure)
		}
		return errors.Join(failure, err)
	}
	for after := ""; ; {
		names, err := s.Index().PendingDeletes(ctx, after, storage.DeleteAtOnce)
		if err != nil || len(names) == 0 || !s.HasBytes() {
			return dropped, left(err)
		}
		if after == "" {
			// If the storage isn't mounted, they seem to be deleted.
			if _, err := s.Identity(ctx); err != nil {
				return dropped, err
			}
		}
		after = names[len(names)-1]
		err = s.DeleteEach(ctx, names, 0, func(n int, one storage.Freed, err error) {
			dropped.Size += one.Size
			dropped.Usage += one.Usage
			if err == nil {
				return
			}
			if s.NarStore().MayRemove(names[n]) == nil {
				unforeseen++
			}
			if failure == nil {
				failure = fmt.Errorf("%w: %w", storage.ErrNotDeleted, err)
			}
		})
		if err != nil {
			return dropped, left(err) // the same for all files
		}
	}
}
