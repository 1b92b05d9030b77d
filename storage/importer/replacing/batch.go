package replacing

import (
	"errors"
	"sync/atomic"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// An addition may replace a file that a row claims by another nar, or by the same nar with
// another length. Row and file can't change atomically, so
//
//  1. a transaction unclaims the file, and records its name,
//  2. the file is replaced, and
//  3. the transaction that writes the new row deletes the record.
//
// If the addition fails before it begins to replace the file, the claim is restored. Otherwise,
// and after a crash, the file may be either nar: the record stays, and [Resolve] compares the
// file with the row.

// Batch has the files that a batch of additions replaces, by name.
type Batch struct {
	record Record
	files  map[string]*file
}

type file struct {
	// These are what the row claimed.
	hash     narinfo.PathHash
	narHash  narinfo.NarHash
	size     int64
	verified time.Time
	// sure says that the claim was right before this batch.
	sure bool
	// begun says that the file may be the new one, and shown that the transaction
	// writes the row for it.
	begun atomic.Bool
	shown bool
}

// NewBatch makes a batch without files.
func NewBatch(now time.Time) *Batch {
	return &Batch{record: NewRecord(now), files: make(map[string]*file)}
}

// Len returns the number of files.
func (b *Batch) Len() int { return len(b.files) }

// Has reports whether the batch replaces the file.
func (b *Batch) Has(name string) bool { return b.files[name] != nil }

// Add records that the batch is about to replace the Ith file of a row, unless nobody depends
// on it. It reports whether the caller must unclaim the file in the row.
func (b *Batch) Add(tx *index.Tx, name string, row *storage.Item, i int) (bool, error) {
	noted, err := RecordOf(tx, name)
	if err != nil || !row.HasStored(i) && noted == "" {
		return false, err
	}
	b.files[name] = &file{hash: row.Hash, narHash: row.Narinfo.NarHash, size: row.StoredSize(i), verified: row.VerifiedAt, sure: noted == ""}
	// Cancel a pending delete, because no row claims the file now.
	return true, errors.Join(b.record.Set(tx, name), tx.RemovePendingDeletes([]string{name}))
}

// MayReplace reports whether the batch may replace a file that no row claims: no other process
// is replacing it.
func (b *Batch) MayReplace(tx *index.Tx, name string) (bool, error) {
	noted, err := RecordOf(tx, name)
	return noted == "" || noted == b.record, err
}

// Show is called when the transaction will write the new row of a file.
func (b *Batch) Show(name string) {
	if file := b.files[name]; file != nil {
		file.shown = true
	}
}

// BeginAnew resets Show for another attempt at the transaction. Files that were replaced
// stay so.
func (b *Batch) BeginAnew() {
	for _, file := range b.files {
		file.shown = false
	}
}

// Begin is called before the file is replaced.
func (b *Batch) Begin(name string) {
	if file := b.files[name]; file != nil {
		file.begun.Store(true)
	}
}

// Restore restores the claims on files of one item, or of all for nil, that this batch has
// unclaimed and not begun to replace.
func (b *Batch) Restore(tx *index.Tx, only *narinfo.PathHash) error {
	for name, file := range b.files {
		if only != nil && file.hash != *only || !file.sure || file.begun.Load() {
			continue
		}
		noted, err := RecordOf(tx, name)
		if err != nil {
			return err
		}
		if noted != b.record {
			continue // another addition is replacing it
		}
		if err := Forget(tx, name); err != nil {
			return err
		}
		row, err := tx.Item(file.hash)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		item, err := storage.NewItem(row)
		if err != nil {
			return err
		}
		i := item.FileNamed(name)
		if i < 0 || item.HasStored(i) || item.Narinfo.NarHash != file.narHash || item.StoredSize(i) != file.size {
			continue
		}
		if err := tx.SetStored(item.Hash, item.Stored|item.FilesNamed(name), item.Sizes, file.verified); err != nil {
			return err
		}
	}
	return nil
}

// Finish forgets the names of files for which the transaction writes rows.
func (b *Batch) Finish(tx *index.Tx) error {
	for name, file := range b.files {
		if !file.shown {
			continue
		}
		noted, err := RecordOf(tx, name)
		if err == nil && noted == b.record {
			err = Forget(tx, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
