package importer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/importer/replacing"
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
// and after a crash, the file may be either nar: the record stays, and
// [replacing.Resolve] compares the file with the row.

// restoreWait is how long a failed addition waits for the index.
const restoreWait = 5 * time.Second

// replacements are the files that a batch of additions replaces, by name.
type replacements struct {
	record replacing.Record
	files  map[string]*replacement
}

type replacement struct {
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

func (im *Importer) newReplacements() *replacements {
	return &replacements{record: replacing.NewRecord(im.Now()), files: make(map[string]*replacement)}
}

// show is called when the transaction will write the new row of a file.
func (r *replacements) show(name string) {
	if file := r.files[name]; file != nil {
		file.shown = true
	}
}

// beginAnew resets show for another attempt at the transaction. Files that were replaced
// stay so.
func (r *replacements) beginAnew() {
	for _, file := range r.files {
		file.shown = false
	}
}

// begin is called before the file is replaced.
func (r *replacements) begin(name string) {
	if file := r.files[name]; file != nil {
		file.begun.Store(true)
	}
}

// unstore unclaims files that the addition is about to replace.
func (r *replacements) unstore(tx *index.Tx, p *prepared) error {
	row, err := tx.Item(p.Narinfo.StorePath.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	old, err := storage.NewItem(row)
	if err != nil {
		return err
	}
	if old.Narinfo.NarHash != p.Narinfo.NarHash && !p.Replace {
		return nil // another process has just added it, and it will be kept
	}
	kept := old.Stored
	for n, staged := range p.staged {
		if staged == nil {
			continue
		}
		name, err := p.Narinfo.Files[n].Path()
		if err != nil {
			return err
		}
		i := old.FileNamed(name)
		if i < 0 || r.files[name] != nil || p.repeats(n, old, i) {
			continue
		}
		noted, err := replacing.RecordOf(tx, name)
		if err != nil {
			return err
		}
		if !old.HasStored(i) && noted == "" {
			continue
		}
		kept &^= old.FilesNamed(name)
		r.files[name] = &replacement{hash: old.Hash, narHash: old.Narinfo.NarHash, size: old.StoredSize(i), verified: old.VerifiedAt, sure: noted == ""}
		// Cancel a pending delete, because no row claims the file now.
		if err := errors.Join(r.record.Set(tx, name), tx.RemovePendingDeletes([]string{name})); err != nil {
			return err
		}
	}
	if kept == old.Stored {
		return nil
	}
	return tx.SetStored(old.Hash, kept, old.Sizes, time.Time{})
}

// mayReplace reports whether the addition's Nth file may replace a file that the row
// names: no row claims it, and no other process is replacing it.
func (r *replacements) mayReplace(tx *index.Tx, p *prepared, n int, old *storage.Item, i int, name string) (bool, error) {
	if old.HasStored(i) {
		return p.repeats(n, old, i), nil
	}
	noted, err := replacing.RecordOf(tx, name)
	return noted == "" || noted == r.record, err
}

// repeats reports whether the addition's Nth file is the one that the row claims as its
// Ith: the same nar with the same length. Such a replacement is right at any time.
func (p *prepared) repeats(n int, old *storage.Item, i int) bool {
	return old.HasStored(i) && old.Narinfo.NarHash == p.Narinfo.NarHash &&
		old.StoredSize(i) == index.FileSize(p.Narinfo, n, p.entry.Sizes)
}

// mends reports whether a file of the addition replaces one that the row claims and that
// was missing or damaged.
func (p *prepared) mends(old *storage.Item) bool {
	for n, staged := range p.staged {
		name, err := p.Narinfo.Files[n].Path()
		if staged == nil || err != nil || p.old == nil {
			continue
		}
		was, is := p.old.FileNamed(name), old.FileNamed(name)
		if was >= 0 && p.old.HasStored(was) && is >= 0 && p.repeats(n, old, is) {
			return true
		}
	}
	return false
}

// restore restores the claims on files of one item, or of all for nil, that this batch has
// unclaimed and not begun to replace.
func (r *replacements) restore(tx *index.Tx, only *narinfo.PathHash) error {
	for name, file := range r.files {
		if only != nil && file.hash != *only || !file.sure || file.begun.Load() {
			continue
		}
		noted, err := replacing.RecordOf(tx, name)
		if err != nil {
			return err
		}
		if noted != r.record {
			continue // another addition is replacing it
		}
		if err := replacing.Forget(tx, name); err != nil {
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

// finish forgets the names of files for which the transaction writes rows.
func (r *replacements) finish(tx *index.Tx) error {
	for name, file := range r.files {
		if !file.shown {
			continue
		}
		noted, err := replacing.RecordOf(tx, name)
		if err == nil && noted == r.record {
			err = replacing.Forget(tx, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// undo restores claims after the transaction of a batch has failed, even if the database
// is full.
func (im *Importer) undo(ctx context.Context, r *replacements) {
	if len(r.files) == 0 {
		return
	}
	longer, end := linger.Context(ctx, linger.Second)
	defer end()
	ctx, cancel := context.WithTimeout(longer, restoreWait)
	defer cancel()
	if err := im.index.Reclaim(ctx, func(tx *index.Tx) error { return r.restore(tx, nil) }); err != nil {
		im.log.Warn("nars that could not be replaced are not served until the server has checked them, which it does within minutes", "nars", len(r.files), "error", err)
	}
}
