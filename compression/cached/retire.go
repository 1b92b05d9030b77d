package cached

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/index"
)

// retireBatch bounds the files of one transaction.
const retireBatch = 500

// retire withdraws unused files, and deletes withdrawn files after their grace period.
func (c *Cache) retire(ctx context.Context, k *kind, now time.Time) error {
	for k.Unused != nil {
		files, err := c.index.LeastUsed(ctx, k.Name, now.Add(-*k.Unused), retireBatch)
		if err != nil {
			return err
		}
		files = c.notPending(files)
		if len(files) == 0 {
			break
		}
		if err := c.withdraw(ctx, k, files); err != nil {
			return err
		}
	}
	for {
		files, err := c.index.Deletable(ctx, k.Name, now, retireBatch)
		if err != nil || len(files) == 0 {
			return err
		}
		for _, file := range files {
			if err := c.delete(ctx, k, file, now); err != nil {
				return fmt.Errorf("delete %s: %w", file.Hash, err)
			}
		}
	}
}

// notPending drops files with uses that are not in the index yet.
func (c *Cache) notPending(files []index.CachedFile) (idle []index.CachedFile) {
	for _, file := range files {
		if !c.options.Uses.IsPending(file.Hash) {
			idle = append(idle, file)
		}
	}
	return idle
}

// withdraw removes the files from narinfos. The recorded time is later than the last answer
// that names them.
func (c *Cache) withdraw(ctx context.Context, k *kind, files []index.CachedFile) error {
	k.hide(files)
	defer k.unhide(files)
	for _, file := range files {
		c.changed(file.Hash)
	}
	at := time.Now()
	var due time.Time
	err := c.index.Reclaim(ctx, func(tx *index.Tx) (err error) {
		for _, file := range files {
			if err := tx.WithdrawCached(file.Hash, k.Name, at); err != nil && !errors.Is(err, storage.ErrNotFound) {
				return err
			}
		}
		due, err = tx.Expiry(k.Name, at)
		return err
	})
	if err != nil {
		// Narinfos name the files again.
		for _, file := range files {
			c.changed(file.Hash)
		}
		return err
	}
	k.metrics.withdrawn.Add(float64(len(files)))
	c.log.Info("withdrew cached nars; they take space until no client can have a narinfo that names them", "type", k.Name, "nars", len(files), "freed_from", due.UTC().Format(time.RFC3339))
	return nil
}

// delete removes a withdrawn file, unless it was announced again meanwhile.
func (c *Cache) delete(ctx context.Context, k *kind, file index.CachedFile, now time.Time) error {
	k.changing.Lock()
	defer k.changing.Unlock()
	path, err := c.path(ctx, file.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		return nil // the item was removed, with this row; a scan deletes the file
	} else if err != nil {
		return err
	}
	current, recorded, err := c.file(ctx, k, file.Hash)
	if err != nil || !recorded || current.WithdrawnAt.IsZero() || current.DeleteAfter.After(now) {
		return err
	}
	k.metrics.deleted.Inc()
	return c.remove(ctx, k, path)
}

// makeRoom withdraws the least recently used files, so that there will be room for needed bytes
// after their grace period. Files that are already withdrawn count, so that one large nar
// doesn't empty the directory.
func (c *Cache) makeRoom(ctx context.Context, k *kind, needed int64) error {
	if needed > k.space.max {
		return nil // it never fits
	}
	coming, err := c.index.WithdrawnSize(ctx, k.Name)
	if err != nil {
		return err
	}
	for coming < needed {
		// Uses may have times in the future if the clock was wrong.
		files, err := c.index.LeastUsed(ctx, k.Name, time.Now().AddDate(1000, 0, 0), 50)
		if err != nil {
			return err
		}
		files = c.notPending(files)
		enough := 0
		for ; enough < len(files) && coming < needed; enough++ {
			coming += files[enough].Size
		}
		if enough == 0 {
			return nil
		}
		if err := c.withdraw(ctx, k, files[:enough]); err != nil {
			return err
		}
	}
	return nil
}
