package cached

import (
	"context"
	"slices"

	"nar-herder/storage/index"
)

// enqueue queues nars that have become popular.
func (c *Cache) enqueue(popular []index.Used) {
	for _, used := range popular {
		for _, k := range c.kinds {
			if !slices.Contains(used.Cached, k.Name) {
				c.queue.add(task{used.Hash, k})
			}
		}
	}
}

// enqueuePopular queues popular nars that earlier runs have not made.
func (c *Cache) enqueuePopular(ctx context.Context, k *kind) {
	for cursor := int64(0); ctx.Err() == nil; {
		hashes, err := c.index.Popular(ctx, k.Name, int64(c.options.MinUses), &cursor)
		if err != nil {
			c.log.Warn("can't find popular nars of earlier runs", "type", k.Name, "error", err)
			return
		}
		if len(hashes) == 0 {
			return
		}
		for _, hash := range hashes {
			if !c.queue.add(task{hash, k}) {
				return // full: others are queued when they are requested again
			}
		}
	}
}
