package check

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// locked runs f in a transaction that adds nothing.
func (c *Checker) locked(ctx context.Context, f func(context.Context, *index.Tx) error) error {
	return unwrapMeanwhile(c.Reclaim(ctx, f))
}

// unwrapMeanwhile removes the name of the database from [errMeanwhile].
func unwrapMeanwhile(err error) error {
	if errors.Is(err, errMeanwhile) {
		return errMeanwhile
	}
	return err
}

// The functions below are the steps of a repair. Each is a transaction, or can be interrupted
// and repeated, and each first checks that row and file are unchanged.

// restore commits bytes that are the item's nar in the place of the file that was found,
// and makes the row claim them. After a crash between the two, the row claims what it
// claimed before, or too little.
func (c *Checker) restore(ctx context.Context, finding Finding, staged bytestore.Staged, size int64) error {
	return unwrapMeanwhile(c.Update(ctx, size, func(ctx context.Context, tx *index.Tx) error {
		item, err := c.still(ctx, tx, finding)
		if err == nil {
			err = c.MayDelete(ctx) // the owner may have changed since the fetch began
		}
		if err != nil {
			return err
		}
		if err := errors.Join(staged.Commit(ctx), c.bytes.Sync(ctx)); err != nil {
			return err
		}
		// Even if the row claims them already: other processes must read the file again.
		files := item.FilesNamed(finding.Name)
		if err := tx.SetStored(item.Hash, item.Stored|files, item.Sizes, c.Now()); err != nil || item.Stored&^files != 0 {
			return err
		}
		return tx.SetVerified(item.Hash, c.Now())
	}))
}

// record makes the row claim a file that exists as the item's Nth.
func (c *Checker) record(ctx context.Context, finding Finding, n int) error {
	if err := c.bytes.Flush(ctx, finding.Name); errors.Is(err, fs.ErrNotExist) {
		return errMeanwhile
	} else if err != nil {
		return err
	}
	return c.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		item, err := c.still(ctx, tx, finding)
		if err != nil {
			return err
		}
		if err := c.bytes.Sync(ctx); err != nil {
			return err
		}
		return tx.SetStored(item.Hash, item.Stored|1<<n, item.SizesWith(n, finding.info.Size), c.Now())
	})
}

// unclaim makes the row no longer claim the file of a finding. If it was the last one, the item
// may be hidden from clients, unless its nar can be fetched again from an upstream.
func (r *Repairer) unclaim(ctx context.Context, finding Finding) error {
	c := r.c
	return c.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		item, err := c.still(ctx, tx, finding)
		if err != nil {
			return err
		}
		stored := item.Stored &^ item.FilesNamed(finding.Name)
		if err := tx.SetStored(item.Hash, stored, item.Sizes, time.Time{}); err != nil {
			return err
		}
		if stored == 0 && item.Origin == 0 && r.options.Hide != nil && r.options.Hide(item) {
			return tx.SetLost(item.Hash, c.Now())
		}
		return nil
	})
}

// withhold moves a wrong file that a row claims to the quarantine, by a copy. The row keeps its
// claim.
func (c *Checker) withhold(ctx context.Context, finding Finding) error {
	if err := c.copyToQuarantine(ctx, finding); err != nil {
		return err
	}
	return c.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		item, err := c.still(ctx, tx, finding)
		if err == nil {
			err = c.MayDelete(ctx)
		}
		if err == nil {
			err = errors.Join(c.bytes.Remove(ctx, finding.Name), c.bytes.Sync(ctx))
		}
		if err != nil {
			return err
		}
		return tx.SetStored(item.Hash, item.Stored, item.Sizes, time.Time{}) // logs the change
	})
}

// setAside moves a file that no row claims to the quarantine, by a copy, as every byte
// store can copy.
func (c *Checker) setAside(ctx context.Context, finding Finding) error {
	if err := c.copyToQuarantine(ctx, finding); err != nil {
		return err
	}
	return c.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		claimed, err := storage.IsClaimed(tx, finding.Item.Hash, finding.Name)
		if err == nil {
			err = c.MayDelete(ctx)
		}
		if err != nil {
			return err
		}
		info, err := c.bytes.Stat(ctx, finding.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case claimed || !info.IsSame(finding.info):
			return errMeanwhile
		}
		return errors.Join(c.bytes.Remove(ctx, finding.Name), c.bytes.Sync(ctx))
	})
}

// copyToQuarantine keeps a wrong file for the administrator. It replaces an earlier copy
// of the same name.
func (c *Checker) copyToQuarantine(ctx context.Context, finding Finding) error {
	reader, info, err := c.bytes.Open(ctx, finding.Name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsSame(finding.info) {
		err = errMeanwhile
	}
	if reader != nil {
		defer reader.Close()
	}
	if err != nil {
		return err
	}
	room, err := c.ReserveReplacement(ctx, info.Size)
	if err != nil {
		return fmt.Errorf("set %s aside: %w", finding.Name, err)
	}
	defer room.Release()
	staged, err := c.ByteStore().Stage(ctx, bytestore.QuarantineFolder+finding.Name, io.LimitReader(reader, info.Size), info.Size)
	if err != nil {
		return fmt.Errorf("set %s aside: %w", finding.Name, err)
	}
	defer staged.Abort()
	return errors.Join(staged.Commit(ctx), c.bytes.Sync(ctx))
}
