package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"nar-herder/internal/linger"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// lockedBytes bounds the bytes that a remote byte store commits while the index is locked:
// even at the slowest rate, that takes less time than other processes wait for the lock.
// Batches end at this size, and larger files are committed before the lock.
const lockedBytes = 1 << 30

// IsMuch reports whether so many bytes are enough for one transaction.
func (s *Storage) IsMuch(size int64) bool { return size >= lockedBytes && s.IsRemote() }

// CommitNew commits a file without locking the index, and describes the stored file; nil if the
// name is in use.
func (s *Storage) CommitNew(ctx context.Context, name string, staged bytestore.Staged) (*bytestore.Info, error) {
	if err := staged.CommitNew(ctx); errors.Is(err, fs.ErrExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	info, err := s.bytes.Stat(ctx, name)
	return &info, err
}

// Discard deletes files that were committed with [Storage.CommitNew] and are not needed,
// except those that a row claims by now.
func (s *Storage) Discard(ctx context.Context, names []string) {
	if len(names) == 0 {
		return
	}
	ctx, cancel := linger.Context(ctx, linger.Second)
	defer cancel()
	err := s.index.Reclaim(ctx, func(tx *index.Tx) error { return tx.AddPendingDeletes(names) })
	if err == nil || errors.Is(err, index.ErrFull) { // deleting takes no room
		var dropErr error
		if _, _, dropErr = s.DeleteUnclaimed(ctx, names, 0); dropErr == nil {
			return
		}
		err = errors.Join(err, dropErr)
	}
	s.log.Warn("large nars were stored that are not wanted, and could not be deleted: 'nar-herder check' lists those that the server does not delete later", "files", names, "error", err)
}

// IsUnchanged returns an error unless a file is still as it was committed.
func (s *Storage) IsUnchanged(ctx context.Context, name string, shown bytestore.Info) error {
	info, err := s.bytes.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsSame(shown) {
		err = ErrChanged
	}
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// ErrChanged says, within a transaction, that the item has changed since the addition was
// prepared.
var ErrChanged = errors.New("another import or removal has just changed this item: try again")
