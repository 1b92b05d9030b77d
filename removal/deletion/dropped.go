package deletion

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/storage"
	"nar-herder/storage/dropped"
	"nar-herder/storage/index"
)

// DeleteDropped deletes the dropped files that may be deleted at the given time: first the
// rows' claims, then the bytes. freed counts their items. An item keeps another file that is
// certainly stored. If it certainly has none any more, its files are not dropped after all,
// and it counts as kept. If that is unknown, its files stay for now, and the error says why.
func DeleteDropped(ctx context.Context, s *storage.Storage, now time.Time) (freed storage.Freed, kept int, err error) {
	var stuck error // the first of an item whose files stay
	var cursor index.DroppedCursor
	for more := true; more; {
		var rows []*index.Item
		if rows, more, err = s.Index().DroppedPage(ctx, now, &cursor, storage.BatchSize); err != nil {
			return freed, kept, err
		}
		if len(rows) == 0 {
			continue
		}
		if !s.HasBytes() {
			return freed, kept, fmt.Errorf("delete dropped files: %w: name it with --storage", storage.ErrElsewhere)
		}
		if err := s.MayDelete(ctx); errors.Is(err, storage.ErrNotOwner) {
			return freed, kept, nil // its owner deletes them
		} else if err != nil {
			return freed, kept, err
		}
		// If the storage isn't mounted, all files seem to be deleted.
		if _, err := s.Identity(ctx); err != nil {
			return freed, kept, err
		}
		one, restored, err := deleteDropped(ctx, s, rows, now)
		freed.Items += one.Items
		freed.Size += one.Size
		freed.Usage += one.Usage
		kept += restored
		if errors.Is(err, errStays) {
			stuck, err = cmp.Or(stuck, err), nil
		}
		if err != nil {
			return freed, kept, err
		}
	}
	return freed, kept, stuck
}

// errStays says that some files of a page were not deleted.
var errStays = errors.New("dropped files stay")

// deleteDropped is [DeleteDropped] for a page of items.
func deleteDropped(ctx context.Context, s *storage.Storage, rows []*index.Item, now time.Time) (freed storage.Freed, restored int, err error) {
	items := make([]*storage.Item, len(rows))
	alone := make([]bool, len(rows)) // certainly without another file
	unknown := s.Each(len(rows), func(i int) (err error) {
		if items[i], err = storage.NewItem(rows[i]); err == nil {
			err = dropped.Keeps(ctx, s, items[i], items[i].Dropped)
		}
		if errors.Is(err, storage.ErrNotStored) {
			alone[i], err = true, nil
		}
		return err
	})
	var names []string
	var deleted int
	var last int64
	var stuck error
	err = s.Index().Reclaim(ctx, func(tx *index.Tx) error {
		names, deleted, restored, stuck = nil, 0, 0, nil
		for i, item := range items {
			if item == nil {
				stuck = cmp.Or(stuck, unknown[i])
				continue
			}
			row, err := tx.Item(item.Hash)
			if errors.Is(err, storage.ErrNotFound) || errors.Is(err, index.ErrDamaged) {
				continue
			} else if err != nil {
				return err
			}
			if row.Stored != item.Stored || row.Dropped != item.Dropped || row.DropAfter.After(now) || !bytes.Equal(row.Text, item.Text) {
				continue // it has changed meanwhile
			}
			due := row.Stored & row.Dropped
			if alone[i] && due != 0 {
				restored++
				if err := tx.SetDropped(row.Hash, row.Dropped&^due, s.Now()); err != nil {
					return err
				}
				continue
			}
			if err := cmp.Or(unknown[i], s.MayDrop(item)); err != nil && due != 0 {
				stuck = cmp.Or(stuck, fmt.Errorf("%s: %w", item.Narinfo.StorePath.BaseName(), err))
				continue
			}
			if err := tx.SetStored(row.Hash, row.Stored&^due, row.Sizes, time.Time{}); err != nil {
				return err
			}
			if due != 0 {
				names = append(names, droppedNames(item, due)...)
				deleted++
			}
		}
		if last, err = tx.LastChange(); err != nil {
			return err
		}
		return tx.AddPendingDeletes(names)
	})
	if err != nil {
		return freed, 0, err
	}
	// No row claims them: a file that is not deleted now stays until the next start.
	longer, cancel := linger.Context(ctx, linger.Second)
	freed, left, err := s.DeleteUnclaimed(longer, names, last)
	cancel()
	freed.Items = deleted - left
	if err == nil && stuck != nil {
		err = fmt.Errorf("%w: %w", errStays, stuck)
	}
	return freed, restored, err
}

// droppedNames returns the names of files that no other file of the item has.
func droppedNames(item *storage.Item, files uint64) (names []string) {
	for n, name := range item.FileNames() {
		if files&(1<<n) != 0 && name != "" && item.FilesNamed(name)&^files == 0 && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}
