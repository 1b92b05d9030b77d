package cached

import (
	"context"
	"errors"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// scanAll scans until the context ends. No file is made before the first scan has succeeded.
func (c *Cache) scanAll(ctx context.Context, k *kind) {
	for first := true; ; {
		wait := scanInterval
		if err := c.scan(ctx, k, first); err == nil {
			if first {
				close(k.scanned)
			}
			first = false
		} else if ctx.Err() == nil {
			wait = scanRetry
			c.log.Warn("can't compare the directory of cached nars with the index", "type", k.Name, "error", err)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// scan compares the directory with the index, and cleans up after crashes: it deletes files that
// are incomplete or have no row, and rows without a file. Files with other names stay. The first
// scan, before any job runs, also deletes temporary files and measures the usage.
func (c *Cache) scan(ctx context.Context, k *kind, first bool) error {
	var used int64
	unreferenced := 0
	for info, err := range k.bytes.List(ctx) {
		if err != nil {
			return err
		}
		if info.Name == bytestore.OwnerName {
			used += info.Usage
			continue
		}
		if info.Temporary {
			if !first {
				continue // a job may be running
			}
			if err := k.bytes.Remove(ctx, info.Name); err != nil {
				return err
			}
			continue
		}
		path, err := narinfo.ParseBaseName(info.Name)
		if err != nil {
			used += info.Usage
			unreferenced++
			continue
		}
		usage, removed, err := c.reconcile(ctx, k, path)
		if err != nil {
			return err
		}
		used += usage
		if removed {
			c.log.Info("removed an incomplete or unreferenced cached nar", "type", k.Name, "file", path.BaseName())
		}
	}
	if first {
		k.space.set(used)
	}
	if unreferenced > 0 {
		c.log.Warn("the directory of cached nars has unknown files, which stay and count towards its limit", "type", k.Name, "directory", k.Directory, "files", unreferenced)
	}
	lost := 0
	for file, err := range c.index.AllCached(ctx, k.Name) {
		if err != nil {
			return err
		}
		path, err := c.path(ctx, file.Hash)
		if errors.Is(err, index.ErrNotFound) {
			continue // the item was removed meanwhile
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
		c.log.Warn("cached nars were missing: they will be made again on request", "type", k.Name, "nars", lost)
	}
	return nil
}
