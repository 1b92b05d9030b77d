package importer

import (
	"context"
	"errors"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/storage"
	"nar-herder/storage/importer/replacing"
	"nar-herder/storage/index"
)

// restoreWait is how long a failed addition waits for the index.
const restoreWait = 5 * time.Second

// unclaim unclaims files that the addition is about to replace; see [replacing.Batch].
func (p *prepared) unclaim(tx *index.Tx, replaced *replacing.Batch) error {
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
		if i < 0 || replaced.Has(name) || p.repeats(n, old, i) {
			continue
		}
		unclaim, err := replaced.Add(tx, name, old, i)
		if err != nil {
			return err
		}
		if unclaim {
			kept &^= old.FilesNamed(name)
		}
	}
	if kept == old.Stored {
		return nil
	}
	return tx.SetStored(old.Hash, kept, old.Sizes, time.Time{})
}

// mayReplace reports whether the addition's Nth file may replace the Ith of the row: no row
// claims it, and no other process is replacing it.
func (p *prepared) mayReplace(tx *index.Tx, replaced *replacing.Batch, n int, old *storage.Item, i int, name string) (bool, error) {
	if old.HasStored(i) {
		return p.repeats(n, old, i), nil
	}
	return replaced.MayReplace(tx, name)
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

// undo restores claims after the transaction of a batch has failed, even if the database
// is full.
func (im *Importer) undo(ctx context.Context, replaced *replacing.Batch) {
	if replaced.Len() == 0 {
		return
	}
	longer, end := linger.Context(ctx, linger.Second)
	defer end()
	ctx, cancel := context.WithTimeout(longer, restoreWait)
	defer cancel()
	if err := im.index.Reclaim(ctx, func(tx *index.Tx) error { return replaced.Restore(tx, nil) }); err != nil {
		im.log.Warn("nars that could not be replaced are not served until the server has checked them, which it does within minutes", "nars", replaced.Len(), "error", err)
	}
}
