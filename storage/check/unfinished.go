package check

import (
	"context"
	"errors"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

const (
	// unfinishedEvery is how often unfinished uploads are listed, and unfinishedMost how
	// many of them are removed then, one each unfinishedPause.
	unfinishedEvery = time.Hour
	unfinishedMost  = 100
	unfinishedPause = 20 * time.Second
)

// removeTemporary removes temporary bytes unless they may still be being written.
func (c *Checker) removeTemporary(ctx context.Context, info bytestore.Info) (removed bool, err error) {
	if c.Now().Sub(info.ModTime) < settledAfter {
		return false, nil
	}
	return true, c.ByteStore().Remove(ctx, info.Name)
}

// RemoveUnfinished removes uploads of killed processes until the context ends, if the byte
// store can list them. It removes a few a minute, only uploads that are a day old, and
// only if this instance owns the byte store.
func (c *Checker) RemoveUnfinished(ctx context.Context) {
	if c.bytes == nil {
		return
	}
	for logged := false; ; {
		failure := c.removeUnfinished(ctx)
		switch {
		case ctx.Err() != nil || errors.Is(failure, errors.ErrUnsupported):
			return
		case failure != nil && !logged:
			c.log.Warn("can't remove unfinished uploads that are older than a day: retrying each hour; 'nar-herder check' lists them", "storage", c.bytes.String(), "error", failure)
		}
		logged = failure != nil
		if pace.Sleep(ctx, unfinishedEvery) != nil {
			return
		}
	}
}

// removeUnfinished lists and removes them once. It continues after errors and returns the
// first.
func (c *Checker) removeUnfinished(ctx context.Context) (failure error) {
	failed := func(err error) {
		if failure == nil {
			failure = err
		}
	}
	if err := c.MayDelete(ctx); errors.Is(err, storage.ErrNotOwner) {
		return nil
	} else if err != nil {
		return err
	}
	// List first: a listing may not continue after a removal.
	var found []bytestore.Info
	for info, err := range c.bytes.ListUnfinished(ctx, c.Now().Add(-settledAfter)) {
		if err != nil {
			failed(err)
			continue
		}
		if found = append(found, info); len(found) == unfinishedMost {
			break
		}
	}
	for i, info := range found {
		if i > 0 && pace.Sleep(ctx, unfinishedPause) != nil {
			return ctx.Err()
		}
		if err := c.MayDelete(ctx); errors.Is(err, storage.ErrNotOwner) {
			return failure
		} else if err != nil {
			return errors.Join(failure, err)
		}
		removed, err := c.removeTemporary(ctx, info)
		if err != nil {
			failed(err)
		} else if removed {
			c.log.Info("removed an unfinished upload", "storage", c.bytes.String(), "name", info.Name, "bytes", info.Size, "since", info.ModTime)
		}
	}
	return failure
}
