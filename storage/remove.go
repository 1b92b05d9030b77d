package storage

import (
	"context"
	"errors"
	"path"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// Removal is what went with an item.
type Removal struct {
	StorePath narinfo.StorePath
	// Bytes that the storage has more room for, by their length.
	Bytes int64
}

// Remove deletes an item: its row first, then its bytes. The error is
// [ErrNotFound] when there is none. When the bytes can't be deleted, the item is
// gone all the same and the error says what is left.
func (s *Storage) Remove(ctx context.Context, hash narinfo.PathHash) (Removal, error) {
	var removal Removal
	var names []string
	err := s.index.Update(ctx, func(tx *index.Tx) error {
		row, err := tx.Item(hash)
		if err != nil {
			return err
		}
		item, err := NewItem(row)
		if err != nil {
			return err
		}
		removal.StorePath = item.Narinfo.StorePath
		// Also what is there without being recorded, as after a crash.
		names = item.ownNames()
		return errors.Join(tx.AddLeftovers(names), tx.Remove(hash, s.now()))
	})
	if errors.Is(err, ErrNotFound) {
		return removal, ErrNotFound
	}
	if err != nil {
		return removal, err
	}
	dropped, err := s.dropUnclaimed(ctx, names, 0)
	removal.Bytes = dropped.Size
	return removal, err
}

// hashInName returns the path hash that a nar's name begins with; the zero
// hash, which no item has, when it begins with none.
func hashInName(name string) narinfo.PathHash {
	base := path.Base(name)
	if len(base) < narinfo.PathHashLen {
		return narinfo.PathHash{}
	}
	hash, err := narinfo.ParsePathHash(base[:narinfo.PathHashLen])
	if err != nil {
		return narinfo.PathHash{}
	}
	return hash
}
