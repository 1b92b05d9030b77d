package storage

import (
	"context"
	"errors"
	"io/fs"
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
		return tx.Remove(hash, s.now())
	})
	if errors.Is(err, ErrNotFound) {
		return removal, ErrNotFound
	}
	if err != nil {
		return removal, err
	}
	removal.Bytes, err = s.dropUnclaimed(ctx, names)
	return removal, err
}

// dropUnclaimed deletes bytes that no row claims, and returns their length. It
// holds the index's lock meanwhile: without it, an import of the same item
// could find the bytes there, and write a row for them, just before they go.
func (s *Storage) dropUnclaimed(ctx context.Context, names []string) (dropped int64, err error) {
	if len(names) == 0 || s.bytes == nil {
		return 0, nil
	}
	err = s.index.Update(ctx, func(tx *index.Tx) error {
		for _, name := range names {
			row, err := tx.Item(hashInName(name))
			if err == nil {
				item, err := NewItem(row)
				if err != nil {
					return err
				}
				if n := item.FileNamed(name); n >= 0 && item.HasStored(n) {
					continue
				}
			} else if !errors.Is(err, ErrNotFound) {
				return err
			}
			info, err := s.bytes.Stat(ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			} else if err != nil {
				return err
			}
			if err := s.bytes.Remove(ctx, name); err != nil {
				return err
			}
			dropped += info.Size
		}
		return s.bytes.Sync(ctx)
	})
	return dropped, err
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
