// Package recount corrects which files the rows of an index claim, by the list of the byte
// store.
package recount

import (
	"context"
	"errors"
	"hash/maphash"
	"io/fs"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Counts is what [Claims] has found.
type Counts struct {
	// Recorded counts the files that are newly recorded as stored, and Missing those that no
	// longer are, because they don't exist.
	Recorded, Missing int64
}

// batchSize is how many items are changed in one transaction.
const batchSize = 1000

// Claims makes the rows claim the files that are in the byte store under their names
// and have the right size, and no others. It does not read the files. Only the owner of
// the byte store may call it. looked is called for each file.
func Claims(ctx context.Context, s *storage.Storage, looked func()) (found Counts, err error) {
	if err := s.MayDelete(ctx); err != nil {
		return found, err
	}
	seed := maphash.MakeSeed()
	sizes := make(map[uint64]int64) // by a hash of the name: names would take too much memory
	for info, err := range s.NarStore().List(ctx) {
		if err != nil && info.Name != "" {
			continue // such as lost+found, which has no nars
		}
		if err != nil {
			return found, err
		}
		if looked(); !info.Temporary && storage.IsNarName(info.Name) {
			sizes[maphash.String(seed, info.Name)] = info.Size
		}
	}
	size := func(name string) (int64, bool) {
		size, ok := sizes[maphash.String(seed, name)]
		return size, ok
	}
	batch := make([]narinfo.PathHash, 0, batchSize)
	recount := func() error {
		var counted Counts
		err := s.Index().Update(ctx, func(tx *index.Tx) error {
			counted = Counts{}
			for _, hash := range batch {
				if err := recountItem(ctx, s, tx, hash, size, &counted); err != nil {
					return err
				}
			}
			return nil
		})
		found = Counts{found.Recorded + counted.Recorded, found.Missing + counted.Missing}
		batch = batch[:0]
		return err
	}
	for item, err := range s.Index().Items(ctx) {
		if errors.Is(err, index.ErrDamaged) {
			continue // its files are unknown, and a check reports it
		}
		if err != nil {
			return found, err
		}
		if batch = append(batch, item.Hash); len(batch) == batchSize {
			if err := recount(); err != nil {
				return found, err
			}
		}
	}
	return found, recount()
}

// recountItem corrects the row of one item. sizeOf returns the size of a file in the byte
// store.
func recountItem(ctx context.Context, s *storage.Storage, tx *index.Tx, hash narinfo.PathHash, sizeOf func(string) (int64, bool), counted *Counts) error {
	row, err := tx.Item(hash)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	item, err := storage.NewItem(row)
	if err != nil {
		return err
	}
	before := item.Stored
	for n, name := range item.FileNames() {
		size, exists := sizeOf(name)
		switch has := item.HasStored(n); {
		case name == "" || has == exists:
		case has:
			if _, err := s.NarStore().Stat(ctx, name); !errors.Is(err, fs.ErrNotExist) {
				continue // it may be newer than the list
			}
			row.Stored &^= item.FilesNamed(name)
			counted.Missing++
		case item.IsUnwanted(n): // dropped, and about to be deleted
		case item.StoredSize(n) < 0 || item.StoredSize(n) == size:
			row.Stored |= item.FilesNamed(name)
			row.Sizes = item.SizesWith(n, size)
			counted.Recorded++
		}
	}
	if row.Stored == before {
		return nil
	}
	return tx.SetStored(hash, row.Stored, row.Sizes, time.Time{})
}
