package storage

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// Guard is asked within a transaction, whose view nobody changes any more,
// whether what was decided before still holds. changed are the items that have
// changed since. Its error ends the transaction, and is returned.
type Guard func(tx *index.Tx, changed map[narinfo.PathHash]index.ChangeKind) error

// ErrOutdated says that what was decided on may no longer be so.
var ErrOutdated = errors.New("the index has changed since it was read")

// ErrNotDeleted says that files could not be deleted.
var ErrNotDeleted = errors.New("files can't be deleted")

// ErrDeletionFails says that several files could not be deleted, without a reason known
// beforehand: more would fail. It comes with [ErrNotDeleted].
var ErrDeletionFails = errors.New("deletion fails")

// fewLeft is how many files may be left without that: a request to a bucket can fail, or
// an object be locked.
const fewLeft = 4

// Freed is what a removal gave back.
type Freed struct {
	// Items are those of which no file is left.
	Items int
	// Size is the length of the files, in bytes, and Usage what they took of
	// the store.
	Size, Usage int64
}

// Evict deletes the bytes of items whose rows stay, since others have the nars.
// Items that have changed since the change of the given number, when they were
// read, are passed over. Where it is known beforehand that a file can't be deleted, all
// stay as they are. Otherwise rows come first: when bytes can't be deleted, no row claims
// them any more, and the error says what is left. Of files, it is [ErrNotDeleted].
// evicted are the items whose rows have no files any more, also with an error.
func (s *Storage) Evict(ctx context.Context, items []*Item, since int64, guard Guard) (evicted []*Item, freed Freed, err error) {
	if err := s.MayDelete(ctx); err != nil {
		return nil, Freed{}, err
	}
	if err := s.MayDrop(items...); err != nil {
		return nil, Freed{}, err
	}
	var names []string
	read := since
	err = s.index.Reclaim(ctx, func(tx *index.Tx) error {
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
			if err := tx.Unstore(item.Item, item.Narinfo, s.now()); err != nil {
				return err
			}
			names = append(names, item.ownNames()...)
			evicted = append(evicted, item)
		}
		if err := tx.AddLeftovers(names); err != nil {
			return err
		}
		since = last + int64(len(evicted)) // with its own changes
		return nil
	})
	if err != nil {
		return nil, Freed{}, err
	}
	dropped, left, err := s.dropUnclaimed(ctx, names, since)
	return evicted, Freed{Items: len(evicted) - left, Size: dropped.Size, Usage: dropped.Usage}, err
}

// MayDrop makes sure, as far as that can be known beforehand, that the files which items
// have stored can be deleted. Otherwise the error is [ErrNotDeleted].
func (s *Storage) MayDrop(items ...*Item) error {
	if s.bytes == nil {
		return nil
	}
	for _, item := range items {
		for n, name := range item.names {
			if name == "" || !item.HasStored(n) {
				continue
			}
			if err := s.bytes.MayRemove(name); err != nil {
				s.notDeleted.Add(1)
				return fmt.Errorf("%w: %w", ErrNotDeleted, err)
			}
		}
	}
	return nil
}

// NotDeleted is how often this process could not delete a file.
func (s *Storage) NotDeleted() int64 { return s.notDeleted.Load() }

// Withdraw is [Storage.WithdrawAll] for items that must not have changed since the
// change of the given number, when they were read; else the error is
// [ErrOutdated], or [ErrNotDeleted] where it is known that a file of theirs could not be
// deleted later. It returns those that were not withdrawn before.
func (s *Storage) Withdraw(ctx context.Context, items []*Item, since int64, guard Guard) (withdrawn []*Item, err error) {
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

// RemoveWithdrawn removes the withdrawn items that may be deleted at the given time,
// rows and bytes. An item whose files can't be deleted, as far as that is known
// beforehand, keeps its row: the others are removed, and the error is [ErrNotDeleted].
func (s *Storage) RemoveWithdrawn(ctx context.Context, now time.Time) (freed Freed, err error) {
	var stuck error // the first of an item that stays
	var cursor index.WithdrawnCursor
	for more := true; more; {
		var items []*index.Item
		if items, more, err = s.index.WithdrawnPage(ctx, now, &cursor, BatchSize); err != nil {
			return freed, err
		}
		if len(items) == 0 {
			continue
		}
		// Where the storage isn't mounted, the bytes would seem to be gone. A front end
		// deletes none.
		if !s.readOnly {
			if _, err := s.Identity(ctx); err != nil {
				return freed, err
			}
		}
		var names []string
		var removed int
		var last int64
		var kept error
		err = s.index.Reclaim(ctx, func(tx *index.Tx) error {
			names, removed, kept = nil, 0, nil
			for _, was := range items {
				row, err := tx.Item(was.Hash)
				if errors.Is(err, ErrNotFound) {
					continue
				} else if err != nil {
					return err
				}
				if row.WithdrawnAt.IsZero() || row.DeleteAfter.After(now) {
					continue // it was added again meanwhile
				}
				if s.bytes == nil && row.Stored != 0 {
					kept = cmp.Or(kept, fmt.Errorf("remove what was withdrawn: %w: name it with --storage", ErrElsewhere))
					continue
				}
				item, err := NewItem(row)
				if err != nil {
					return err
				}
				if err := s.MayDrop(item); err != nil {
					kept = cmp.Or(kept, err)
					continue
				}
				if err := tx.Remove(item.Hash, s.now()); err != nil {
					return err
				}
				names = append(names, item.ownNames()...)
				removed++
			}
			if last, err = tx.LastChange(); err != nil {
				return err
			}
			if s.bytes == nil {
				return nil
			}
			return tx.AddLeftovers(names)
		})
		if err != nil {
			return freed, err
		}
		// The rows are gone: what is left now is left until the next start.
		longer, cancel := linger.Context(ctx, linger.Second)
		dropped, left, err := s.dropUnclaimed(longer, names, last)
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

// DropLeftovers deletes files that a process was about to delete when it ended, all
// that it can. The error says what is left: it is [ErrDeletionFails] where that is a reason
// to remove nothing more.
func (s *Storage) DropLeftovers(ctx context.Context) (dropped Freed, err error) {
	var failure error // one is enough for a log
	unforeseen := 0
	left := func(err error) error {
		if unforeseen > fewLeft {
			failure = fmt.Errorf("%w: %w", ErrDeletionFails, failure)
		}
		return errors.Join(failure, err)
	}
	for after := ""; ; {
		names, err := s.index.Leftovers(ctx, after, dropAtOnce)
		if err != nil || len(names) == 0 || s.bytes == nil {
			return dropped, left(err)
		}
		if after == "" {
			// Where the storage isn't mounted, they seem to be gone.
			if _, err := s.Identity(ctx); err != nil {
				return dropped, err
			}
		}
		after = names[len(names)-1]
		err = s.dropEach(ctx, names, 0, func(n int, one Freed, err error) {
			dropped.Size += one.Size
			dropped.Usage += one.Usage
			if err == nil {
				return
			}
			if s.bytes.MayRemove(names[n]) == nil {
				unforeseen++
			}
			if failure == nil {
				failure = fmt.Errorf("%w: %w", ErrNotDeleted, err)
			}
		})
		if err != nil {
			return dropped, left(err) // it is the same for all
		}
	}
}

// dropUnclaimed deletes bytes that no row claims, all that it can. With an error,
// files of so many items are left. They were noted as leftovers before.
func (s *Storage) dropUnclaimed(ctx context.Context, names []string, since int64) (dropped Freed, left int, err error) {
	stuck := make(map[narinfo.PathHash]bool)
	var failures []error
	err = s.dropEach(ctx, names, since, func(n int, one Freed, err error) {
		dropped.Size += one.Size
		dropped.Usage += one.Usage
		if err != nil {
			stuck[HashInName(names[n])] = true
			failures = append(failures, err)
		}
	})
	if err != nil { // which is the same for all
		for _, name := range names {
			stuck[HashInName(name)] = true
		}
	}
	if len(failures) > 0 {
		err = errors.Join(fmt.Errorf("%w: %w", ErrNotDeleted, errors.Join(failures...)), err)
	}
	return dropped, len(stuck), err
}

// dropAtOnce is how many files are deleted in one transaction; see [BatchSize].
const dropAtOnce = 2 * BatchSize

// dropEach deletes bytes that no row claims, and tells for each name what that
// gave back and how it failed. What another instance owns, it leaves there. It holds
// the index's lock meanwhile: without it, an import of the same item could find the
// bytes there, and write a row for them, just before they go. Rows are read again, but
// those that have not changed since the change of the given number, as of which they
// claim nothing; 0 for all. The error is one of all names. Where the transaction has to
// begin anew, told is called again, and what went the first time counts as nothing.
func (s *Storage) dropEach(ctx context.Context, names []string, since int64, told func(n int, dropped Freed, err error)) error {
	if s.bytes == nil || len(names) == 0 {
		return nil
	}
	for begin := 0; begin < len(names); begin += dropAtOnce {
		err := s.index.Reclaim(ctx, func(tx *index.Tx) (err error) {
			var changed map[narinfo.PathHash]index.ChangeKind
			sure := false
			if since > 0 {
				if changed, _, sure, err = tx.ChangedSince(since); err != nil {
					return err
				}
			}
			chunk := names[begin:min(begin+dropAtOnce, len(names))]
			hurried, cancel := s.withLockDeadline(ctx, 0)
			defer cancel()
			if err := s.MayDelete(hurried); errors.Is(err, ErrNotOwner) {
				return tx.RemoveLeftovers(chunk) // they are the owner's to delete
			} else if err != nil {
				return err
			}
			done := make([]string, 0, len(chunk))
			going := make([]int, 0, len(chunk))
			for n, name := range chunk {
				if !IsNarName(name) {
					done = append(done, name) // not a file of an item: forgotten, and left alone
					continue
				}
				hash := HashInName(name)
				if _, hasChanged := changed[hash]; hasChanged || !sure {
					claimed, err := IsClaimed(tx, hash, name)
					if err != nil {
						return err
					}
					if claimed {
						done = append(done, name)
						continue
					}
				}
				going = append(going, n)
			}
			dropped := make([]Freed, len(going))
			failures := s.each(len(going), func(i int) (err error) {
				dropped[i], err = s.drop(hurried, chunk[going[i]])
				return err
			})
			for i, n := range going {
				if failures[i] == nil {
					done = append(done, chunk[n])
				} else {
					s.notDeleted.Add(1)
				}
				told(begin+n, dropped[i], failures[i])
			}
			if err := s.bytes.Sync(ctx); err != nil {
				return err
			}
			return tx.RemoveLeftovers(done)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// each calls f for the numbers below n, and returns the errors: for as many at a time
// as the byte store is good at. One that is far away is not called again after as many
// calls have failed as it takes at a time, since all others would wait for the same: they
// have the last error.
func (s *Storage) each(n int, f func(i int) error) []error {
	failures := make([]error, n)
	if !s.IsRemote() {
		for i := range n {
			failures[i] = f(i)
		}
		return failures
	}
	var next, failed atomic.Int64
	var failure atomic.Pointer[error]
	var calls sync.WaitGroup
	atOnce := s.bytes.Concurrency()
	for range min(atOnce, n) {
		calls.Go(func() {
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				if failed.Load() >= int64(atOnce) {
					failures[i] = *failure.Load()
				} else if failures[i] = f(int(i)); failures[i] != nil && !errors.Is(failures[i], errChanged) {
					failure.Store(&failures[i])
					failed.Add(1)
				}
			}
		})
	}
	calls.Wait()
	return failures
}

// drop deletes the bytes under a name.
func (s *Storage) drop(ctx context.Context, name string) (Freed, error) {
	info, err := s.bytes.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return Freed{}, nil
	} else if err != nil {
		return Freed{}, err
	}
	if err := s.bytes.Remove(ctx, name); err != nil {
		return Freed{}, err
	}
	if info.Linked {
		s.linked.Add(info.Usage)
	}
	return Freed{Size: info.Size, Usage: info.Usage}, nil
}

// IsClaimed says whether the item's row has the file of that name as stored.
func IsClaimed(tx *index.Tx, hash narinfo.PathHash, name string) (bool, error) {
	row, err := tx.Item(hash)
	if errors.Is(err, ErrNotFound) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	item, err := NewItem(row)
	if err != nil {
		return false, err
	}
	n := item.FileNamed(name)
	return n >= 0 && item.HasStored(n), nil
}
