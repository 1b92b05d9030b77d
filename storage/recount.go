package storage

import (
	"cmp"
	"context"
	"errors"
	"hash/maphash"
	"io/fs"
	"slices"

	"nar-herder/storage/index"
)

// Recounted is what [Storage.Recount] has found.
type Recounted struct {
	// Recorded is how many files are recorded as stored that were not before, and
	// Missing how many no longer are, because they are not there.
	Recorded, Missing int64
}

// recountBatch is how many items are changed in one transaction.
const recountBatch = 1000

// Recount makes the rows claim the files that are in the byte store under their names
// and have the right size, and no others. It does not read the files. Only the owner of
// the byte store may call it. looked is called for each file.
func (s *Storage) Recount(ctx context.Context, looked func()) (found Recounted, err error) {
	if err := s.MayDelete(ctx); err != nil {
		return found, err
	}
	type file struct {
		sum  uint64 // of the name: millions of names would not fit into memory
		size int64
	}
	var files []file
	seed := maphash.MakeSeed()
	for info, err := range s.bytes.List(ctx) {
		if err != nil {
			return found, err
		}
		if looked(); !info.Temporary && IsNarName(info.Name) {
			files = append(files, file{maphash.String(seed, info.Name), info.Size})
		}
	}
	slices.SortFunc(files, func(a, b file) int { return cmp.Compare(a.sum, b.sum) })
	// size returns that of the item's Nth file, -1 where it is not there.
	size := func(item *Item, n int) (int64, error) {
		i, ok := slices.BinarySearchFunc(files, maphash.String(seed, item.names[n]), func(f file, sum uint64) int { return cmp.Compare(f.sum, sum) })
		if ok {
			return files[i].size, nil
		}
		if !item.HasStored(n) {
			return -1, nil
		}
		info, err := s.bytes.Stat(ctx, item.names[n]) // it may be newer than the list
		if errors.Is(err, fs.ErrNotExist) {
			return -1, nil
		}
		return info.Size, err
	}
	recount := func(items []*Item) error {
		var counted Recounted
		err := s.index.Update(ctx, func(tx *index.Tx) error {
			counted = Recounted{}
			for _, item := range items {
				row, err := tx.Item(item.Hash)
				if errors.Is(err, ErrNotFound) {
					continue
				} else if err != nil {
					return err
				}
				if item, err = NewItem(row); err != nil {
					return err
				}
				if err := recountItem(tx, item, size, &counted); err != nil {
					return err
				}
			}
			return nil
		})
		found.Recorded += counted.Recorded
		found.Missing += counted.Missing
		return err
	}
	var batch []*Item
	for item, err := range s.Items(ctx) {
		if err != nil {
			return found, err
		}
		if batch = append(batch, item); len(batch) == recountBatch {
			if err := recount(batch); err != nil {
				return found, err
			}
			batch = batch[:0]
		}
	}
	return found, recount(batch)
}

// recountItem makes the row of one item true.
func recountItem(tx *index.Tx, item *Item, size func(*Item, int) (int64, error), counted *Recounted) error {
	stored, sizes := item.Stored, item.Sizes
	for n := range min(len(item.names), 64) {
		if item.names[n] == "" || item.FileNamed(item.names[n]) != n {
			continue
		}
		is, err := size(item, n)
		switch want := item.StoredSize(n); {
		case err != nil:
			return err
		case is < 0 && item.HasStored(n):
			stored &^= item.filesNamed(item.names[n])
			counted.Missing++
		case is >= 0 && !item.HasStored(n) && (want < 0 || want == is):
			stored |= item.filesNamed(item.names[n])
			sizes = (&Item{Item: &index.Item{Sizes: sizes}, Narinfo: item.Narinfo}).sizesWith(n, is)
			counted.Recorded++
		}
	}
	if stored == item.Stored {
		return nil
	}
	return tx.SetStored(item.Hash, stored, sizes)
}
