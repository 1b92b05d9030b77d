package storage

import (
	"bytes"
	"context"
	"errors"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// IsUnwanted reports whether the Nth file was dropped and another one is stored, so that this
// one is not to be stored.
func (i *Item) IsUnwanted(n int) bool { return i.HasDropped(n) && i.Stored&^i.Dropped != 0 }

// DroppedIn returns the item's files that another text does not name. ok is false if the texts
// differ in more than the unsigned blocks of these files.
func (i *Item) DroppedIn(text []byte) (files uint64, ok bool) {
	n, err := narinfo.Parse(text)
	if err != nil || len(n.Files) >= len(i.Narinfo.Files) {
		return 0, false
	}
	named := make(map[string]bool)
	for _, file := range n.Files {
		named[file.URL] = true
	}
	for n, file := range i.Narinfo.Files {
		if !named[file.URL] {
			files |= 1 << n
		}
	}
	return files, bytes.Equal(i.Narinfo.WithoutFiles(files), text)
}

// DropAbsent drops files of an item that its only source certainly doesn't have. It returns
// false, and changes nothing, unless another file of the same nar is stored here.
func (s *Storage) DropAbsent(ctx context.Context, item *Item, files uint64) (dropped bool, err error) {
	err = s.index.Update(ctx, func(tx *index.Tx) error {
		dropped = false
		row, err := tx.Item(item.Hash)
		if errors.Is(err, ErrNotFound) || err == nil && !bytes.Equal(row.Text, item.Text) {
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
