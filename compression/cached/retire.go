package cached

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/index"
)

// retireAtOnce bounds the files of one transaction.
const retireAtOnce = 500

// retire withdraws files that were unused for long, and deletes withdrawn files after their
// grace period.
func (c *Cache) retire(ctx context.Context, k *kind, now time.Time) error {
	for k.Unused != nil {
		files, err := c.index.LeastUsed(ctx, k.Name, now.Add(-*k.Unused), retireAtOnce)
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
		files, err := c.index.Deletable(ctx, k.Name, now, retireAtOnce)
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

// withdraw removes the files from narinfos. The time that is recorded is later than the
// last answer that names them.
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
		// Narinfos name them again, as they are still there.
		for _, file := range files {
			c.changed(file.Hash)
		}
		return err
	}
	k.metrics.withdrawn.Add(float64(len(files)))
	c.log.Info("withdrew cached nars; they take room until no client can hold a narinfo that names them", "type", k.Name, "nars", len(files), "freed_from", due.UTC().Format(time.RFC3339))
	return nil
}

// delete removes a withdrawn file, unless it was announced again meanwhile.
func (c *Cache) delete(ctx context.Context, k *kind, file index.CachedFile, now time.Time) error {
	k.changing.Lock()
	defer k.changing.Unlock()
	path, err := c.path(ctx, file.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		return nil // its row went with the item's; the scan finds the bytes
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

// makeRoom withdraws the files that were not used for longest, so that there
// will be room for needed bytes after their grace period. Files that were withdrawn before
// count, so that one large nar doesn't empty the directory.
func (c *Cache) makeRoom(ctx context.Context, k *kind, needed int64) error {
	if needed > k.space.max {
		return nil // it never fits
	}
	coming, err := c.index.WithdrawnSize(ctx, k.Name)
	if err != nil {
		return err
	}
	for coming < needed {
		// Any: uses may be dated ahead, after the clock was.
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
