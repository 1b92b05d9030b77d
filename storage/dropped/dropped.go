// Package dropped decides which files an item may do without: those that were dropped or that
// its source lacks, as long as another file of the same nar is kept.
package dropped

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Keeps returns nil if the item certainly has a stored file that clients can decompress, other
// than those of the mask and those that were dropped. The error is [storage.ErrNotStored] if it
// certainly has none.
func Keeps(ctx context.Context, s *storage.Storage, item *storage.Item, except uint64) error {
	except |= item.Dropped
	var unknown error
	kept := item.EasiestFile(func(n int) bool {
		if except&(1<<n) != 0 {
			return false
		}
		err := s.LookFor(ctx, item, n)
		if err != nil && !errors.Is(err, storage.ErrNotStored) && !errors.Is(err, storage.ErrMismatch) {
			unknown = err
		}
		return err == nil
	})
	if kept >= 0 {
		return nil
	}
	return cmp.Or(unknown, storage.ErrNotStored)
}

// In returns the item's files that another text does not name. ok is false if the texts differ
// in more than the unsigned blocks of these files.
func In(item *storage.Item, text []byte) (files uint64, ok bool) {
	n, err := narinfo.Parse(text)
	if err != nil || len(n.Files) >= len(item.Narinfo.Files) {
		return 0, false
	}
	named := make(map[string]bool)
	for _, file := range n.Files {
		named[file.URL] = true
	}
	for n, file := range item.Narinfo.Files {
		if !named[file.URL] {
			files |= 1 << n
		}
	}
	return files, bytes.Equal(item.Narinfo.WithoutFiles(files), text)
}

// DeleteAfter returns when files that are dropped now may be deleted.
func DeleteAfter(ctx context.Context, s *storage.Storage) (due time.Time, err error) {
	err = s.Index().View(ctx, func(tx *index.Tx) error {
		due, err = tx.DroppedAfter(s.Now())
		return err
	})
	return due, err
}

// DropAbsent drops files of an item that its only source certainly doesn't have. It returns
// false, and changes nothing, unless another file of the same nar is stored here.
func DropAbsent(ctx context.Context, s *storage.Storage, item *storage.Item, files uint64) (dropped bool, err error) {
	err = s.Index().Update(ctx, func(tx *index.Tx) error {
		dropped = false
		row, err := tx.Item(item.Hash)
		if errors.Is(err, storage.ErrNotFound) || err == nil && !bytes.Equal(row.Text, item.Text) {
			return nil // removed or replaced meanwhile
		} else if err != nil {
			return err
		}
		all := row.Dropped | files&^row.Stored
		if row.Stored&^all == 0 {
			return nil
		}
		dropped = true
		return tx.SetDropped(row.Hash, all, s.Now())
	})
	return dropped && err == nil, err
}
