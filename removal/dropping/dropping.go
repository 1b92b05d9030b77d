// Package dropping drops a compression from items that keep another one.
package dropping

import (
	"bytes"
	"context"
	"errors"
	"iter"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/dropped"
	"nar-herder/storage/index"
)

// Outcome says what happened to an item.
type Outcome int

const (
	// None: the item has no file of the compression, or it is withdrawn.
	None Outcome = iota
	// Dropped: its files of the compression are dropped, or with Undo not any more.
	Dropped
	// Before: they were dropped before.
	Before
	// Only: the item keeps them, since no other file of it is certainly stored.
	Only
	// Failed: see the error.
	Failed
)

// Result is the result for one item.
type Result struct {
	Outcome   Outcome
	StorePath narinfo.StorePath
	// Bytes is the length of the stored files that are dropped.
	Bytes int64
	// Unverified says that a stored file of the item was never compared with its NarHash, maybe
	// one that it keeps.
	Unverified bool
	Err        error
}

// Dropper drops a compression.
type Dropper struct {
	Storage     *storage.Storage
	Compression string
	// Undo wants the files again that are still stored, or that the mirrored instance or an
	// upstream may have.
	Undo bool
	// DryRun reports what would be dropped, and changes nothing.
	DryRun bool
}

// maxTries is how often an item is tried that changes meanwhile.
const maxTries = 3

var errChanging = errors.New("it changes again and again: run this again")

// Do drops the files of the items, in batches, and reports the result of each. The bytes are
// deleted after a grace, see [nar-herder/removal/deletion.DeleteDropped]. It can be interrupted
// and repeated. The error is one that stopped it. It does nothing if the storage may not be
// this instance's, or may not be mounted.
func (d *Dropper) Do(ctx context.Context, items iter.Seq2[*storage.Item, error], report func(Result)) error {
	if err := d.Storage.MayDelete(ctx); err != nil {
		return err
	}
	if err := d.Storage.IsMounted(ctx); err != nil {
		return err
	}
	var batch []*storage.Item
	flush := func() error {
		full := batch
		batch = nil
		return d.batch(ctx, full, maxTries, report)
	}
	for item, err := range items {
		if errors.Is(err, index.ErrDamaged) {
			report(Result{Outcome: Failed, Err: err})
			continue
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
		if batch = append(batch, item); len(batch) == storage.BatchSize {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// batch drops the files of some items in one transaction.
func (d *Dropper) batch(ctx context.Context, items []*storage.Item, tries int, report func(Result)) error {
	results := make([]Result, len(items))
	files := make([]uint64, len(items))
	failures := d.Storage.Each(len(items), func(i int) (err error) {
		results[i], files[i], err = d.decide(ctx, items[i])
		return err
	})
	for i, err := range failures {
		if err != nil {
			results[i].Outcome, results[i].Err, files[i] = Failed, err, 0
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	var again []*storage.Item
	if !d.DryRun {
		err := d.Storage.Index().Reclaim(ctx, func(tx *index.Tx) error {
			again = nil
			for i, item := range items {
				if files[i] == 0 {
					continue
				}
				now, err := d.drop(tx, item, files[i])
				if err != nil {
					return err
				}
				if now != item {
					results[i].Outcome = None
					if now != nil {
						again = append(again, now)
					}
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, result := range results {
		if result.Outcome != None {
			report(result)
		}
	}
	if len(again) == 0 {
		return nil
	}
	if tries == 1 {
		for _, item := range again {
			report(Result{Outcome: Failed, StorePath: item.Narinfo.StorePath, Err: errChanging})
		}
		return nil
	}
	return d.batch(ctx, again, tries-1, report)
}

// decide returns which files of an item to drop, and the result.
func (d *Dropper) decide(ctx context.Context, item *storage.Item) (result Result, files uint64, err error) {
	result.StorePath = item.Narinfo.StorePath
	if !item.WithdrawnAt.IsZero() {
		return result, 0, nil
	}
	var all uint64
	for n, file := range item.Narinfo.Files {
		if file.Compression == d.Compression && item.FileName(n) != "" {
			all |= 1 << n
		}
	}
	for n, name := range item.FileNames() {
		if all&(1<<n) != 0 && item.FilesNamed(name)&^all != 0 {
			all &^= 1 << n // a file of another compression has the same name
		}
	}
	if d.Undo {
		if files = all & item.Dropped; !item.Mirrored && item.Origin == 0 {
			files &= item.Stored
		}
		if files != 0 {
			result.Outcome = Dropped
			result.Bytes = storedBytes(item, files)
		}
		return result, files, nil
	}
	if files = all &^ item.Dropped; files == 0 {
		if all != 0 {
			result.Outcome = Before
		}
		return result, 0, nil
	}
	err = dropped.Keeps(ctx, d.Storage, item, all)
	if errors.Is(err, storage.ErrNotStored) {
		result.Outcome = Only
		return result, 0, nil
	} else if err != nil {
		return result, 0, err
	}
	result.Outcome, result.Unverified = Dropped, item.VerifiedAt.IsZero()
	result.Bytes = storedBytes(item, files)
	return result, files, nil
}

// storedBytes is the length of those of the files that are stored.
func storedBytes(item *storage.Item, files uint64) (bytes int64) {
	for n := range item.Narinfo.Files {
		if files&(1<<n) != 0 && item.HasStored(n) {
			bytes += max(item.StoredSize(n), 0)
		}
	}
	return bytes
}

// drop drops files of an item or undoes that, and returns it. If it has changed since the
// decision, drop changes nothing and returns the item as it is now, nil if it was removed.
func (d *Dropper) drop(tx *index.Tx, item *storage.Item, files uint64) (*storage.Item, error) {
	row, err := tx.Item(item.Hash)
	if errors.Is(err, storage.ErrNotFound) || errors.Is(err, index.ErrDamaged) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	if row.Stored == item.Stored && row.Dropped == item.Dropped && row.WithdrawnAt.IsZero() && bytes.Equal(row.Text, item.Text) {
		dropped := row.Dropped | files
		if d.Undo {
			dropped = row.Dropped &^ files
		}
		return item, tx.SetDropped(row.Hash, dropped, d.Storage.Now())
	}
	return storage.NewItem(row)
}
