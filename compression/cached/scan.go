package cached

import (
	"context"
	"errors"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// surveyAll compares the directory with the index until the context ends: until
// it could be read once, no file is made.
func (c *Cache) surveyAll(ctx context.Context, k *kind) {
	for first := true; ; {
		wait := surveyInterval
		if err := c.survey(ctx, k, first); err == nil {
			if first {
				close(k.surveyed)
			}
			first = false
		} else if ctx.Err() == nil {
			wait = surveyRetry
			c.log.Error("can't compare the directory of cached nars with the index", "type", k.Name, "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// survey puts right what crashes, and others, have left: files that are not
// whole or not recorded go, and so do rows without their file. Names that are
// not ours stay. Before any job runs, it also counts what there is.
func (c *Cache) survey(ctx context.Context, k *kind, first bool) error {
	var used int64
	strangers := 0
	for info, err := range k.bytes.List(ctx) {
		if err != nil {
			return err
		}
		if info.Name == bytestore.OwnerName {
			used += info.Usage
			continue
		}
		if info.Temporary {
			// Later ones may be a job's that is running.
			if !first {
				continue
			}
			if err := k.bytes.Remove(ctx, info.Name); err != nil {
				return err
			}
			continue
		}
		path, err := narinfo.ParseBaseName(info.Name)
		if err != nil {
			used += info.Usage
			strangers++
			continue
		}
		usage, removed, err := c.reconcile(ctx, k, path)
		if err != nil {
			return err
		}
		used += usage
		if removed {
			c.log.Info("removed a file that was no finished cached nar", "type", k.Name, "file", path.BaseName())
		}
	}
	if first {
		k.space.set(used)
	}
	if strangers > 0 {
		c.log.Warn("the directory of cached nars has files that are no nars of ours; they stay, and count for its limit", "type", k.Name, "directory", k.Directory, "files", strangers)
	}
	lost := 0
	for file, err := range c.index.AllCached(ctx, k.Name) {
		if err != nil {
			return err
		}
		path, err := c.path(ctx, file.Hash)
		if errors.Is(err, index.ErrNotFound) {
			continue // with its item, meanwhile
		} else if err != nil {
			return err
		}
		_, removed, err := c.reconcile(ctx, k, path)
		if err != nil {
			return err
		}
		if removed {
			lost++
		}
	}
	if lost > 0 {
		c.log.Warn("cached nars were recorded that are not there; they will be made again when they are asked for", "type", k.Name, "nars", lost)
	}
	return nil
}
