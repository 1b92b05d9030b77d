package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// ErrNotDeleted says that files could not be deleted.
var ErrNotDeleted = errors.New("files can't be deleted")

// Freed is what a removal gave back.
type Freed struct {
	// Items are those of which no file is left.
	Items int
	// Size is the length of the files, in bytes, and Usage what they took of
	// the store.
	Size, Usage int64
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

// DeleteUnclaimed deletes bytes that no row claims, all that it can. With an error,
// files of so many items are left. They were noted as leftovers before.
func (s *Storage) DeleteUnclaimed(ctx context.Context, names []string, since int64) (dropped Freed, left int, err error) {
	stuck := make(map[narinfo.PathHash]bool)
	var failures []error
	err = s.DeleteEach(ctx, names, since, func(n int, one Freed, err error) {
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

// DeleteAtOnce is how many files are deleted in one transaction; see [BatchSize].
const DeleteAtOnce = 2 * BatchSize

// DeleteEach deletes bytes that no row claims, and tells for each name what that
// gave back and how it failed. What another instance owns, it leaves there. It holds
// the index's lock meanwhile: without it, an import of the same item could find the
// bytes there, and write a row for them, just before they go. Rows are read again, but
// those that have not changed since the change of the given number, as of which they
// claim nothing; 0 for all. The error is one of all names. Where the transaction has to
// begin anew, told is called again, and what went the first time counts as nothing.
func (s *Storage) DeleteEach(ctx context.Context, names []string, since int64, report func(n int, dropped Freed, err error)) error {
	if s.bytes == nil || len(names) == 0 {
		return nil
	}
	for begin := 0; begin < len(names); begin += DeleteAtOnce {
		err := s.index.Reclaim(ctx, func(tx *index.Tx) (err error) {
			var changed map[narinfo.PathHash]index.ChangeKind
			sure := false
			if since > 0 {
				if changed, _, sure, err = tx.ChangedSince(since); err != nil {
					return err
				}
			}
			chunk := names[begin:min(begin+DeleteAtOnce, len(names))]
			bounded, cancel := s.WithLockDeadline(ctx, 0)
			defer cancel()
			if err := s.MayDelete(bounded); errors.Is(err, ErrNotOwner) {
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
			failures := s.Each(len(going), func(i int) (err error) {
				dropped[i], err = s.drop(bounded, chunk[going[i]])
				return err
			})
			for i, n := range going {
				if failures[i] == nil {
					done = append(done, chunk[n])
				} else {
					s.notDeleted.Add(1)
				}
				report(begin+n, dropped[i], failures[i])
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

// Each calls f for the numbers below n, and returns the errors: for as many at a time
// as the byte store is good at. One that is far away is not called again after as many
// calls have failed as it takes at a time, since all others would wait for the same: they
// have the last error.
func (s *Storage) Each(n int, f func(i int) error) []error {
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
				} else if failures[i] = f(int(i)); failures[i] != nil && !errors.Is(failures[i], ErrChanged) {
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

// LinkedRemoved is how many bytes this process has removed that did not become free, as
// the files have other names, such as in an export.
func (s *Storage) LinkedRemoved() int64 { return s.linked.Load() }
