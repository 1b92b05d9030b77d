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

// Freed is what a removal has freed.
type Freed struct {
	// Items counts items that have no files left.
	Items int
	// Size is the length of the files in bytes, and Usage their disk space.
	Size, Usage int64
}

// MayDrop returns [ErrNotDeleted] if it is known beforehand that a stored file of the
// items can't be deleted.
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

// NotDeleted counts the files that this process failed to delete.
func (s *Storage) NotDeleted() int64 { return s.notDeleted.Load() }

// DeleteUnclaimed deletes as many as it can of the files that no row claims. They must
// have been recorded as pending deletes before. left counts the items that still have
// files after an error. since is as in [Storage.DeleteEach].
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
	if err != nil { // the same for all files
		for _, name := range names {
			stuck[HashInName(name)] = true
		}
	}
	if len(failures) > 0 {
		err = errors.Join(fmt.Errorf("%w: %w", ErrNotDeleted, errors.Join(failures...)), err)
	}
	return dropped, len(stuck), err
}

// DeleteAtOnce is the number of files that are deleted in one transaction; see
// [BatchSize].
const DeleteAtOnce = 2 * BatchSize

// DeleteEach deletes those of the named files that no row claims, and reports for each
// what that freed or how it failed. Files that another instance owns stay.
//
// The index is locked meanwhile. Otherwise an import of the same item could find the file
// and write a row for it just before it is deleted. since is the number of a change as of
// which no row claims the files: only rows that have changed later are read again. With 0,
// all are read again.
//
// The returned error is about all files. If the transaction has to be repeated, report is
// called again, and files deleted by the first attempt count as nothing.
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
				return tx.RemovePendingDeletes(chunk) // their owner deletes them
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
			return tx.RemovePendingDeletes(done)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Each calls f for the numbers below n and returns the errors. For a remote byte store it
// makes several calls at a time. After as many failures it stops, because the others would
// fail too, and returns the last error for these.
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

// drop deletes the file with the name.
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

// IsClaimed reports whether the item's row has the named file as stored.
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

// LinkedRemoved counts the bytes of files that this process has removed without freeing
// space, since they have other names, such as in an export.
func (s *Storage) LinkedRemoved() int64 { return s.linked.Load() }
