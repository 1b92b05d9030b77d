package storage

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// IsUnwanted reports whether the Nth file was dropped and another one is stored, so that this
// one is not to be stored.
func (i *Item) IsUnwanted(n int) bool { return i.HasDropped(n) && i.Stored&^i.Dropped != 0 }

// KeepsFile returns nil if the item certainly has a stored file that clients can decompress,
// other than those of the mask and those that were dropped. The error is [ErrNotStored] if it
// certainly has none.
func (s *Storage) KeepsFile(ctx context.Context, item *Item, except uint64) error {
	except |= item.Dropped
	var unknown error
	for n, file := range item.Narinfo.Files {
		if except&(1<<n) != 0 || !slices.Contains(byEffort, file.Compression) {
			continue
		}
		switch err := s.LookFor(ctx, item, n); {
		case err == nil:
			return nil
		case !errors.Is(err, ErrNotStored) && !errors.Is(err, ErrMismatch):
			unknown = err
		}
	}
	return cmp.Or(unknown, ErrNotStored)
}

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

// DroppedAfter returns when files that are dropped now may be deleted.
func (s *Storage) DroppedAfter(ctx context.Context) (due time.Time, err error) {
	err = s.index.View(ctx, func(tx *index.Tx) error {
		due, err = tx.DroppedAfter(s.now())
		return err
	})
	return due, err
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
