package cached

import (
	"context"
	"slices"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// uses gathers requests for nars in memory, so that answering them writes
// nothing.
type uses struct {
	mu      sync.Mutex
	pending map[narinfo.PathHash]*index.Uses
}

// maxPending bounds the items whose uses are gathered, should the database be
// locked for long. What is beyond is not counted.
const maxPending = 100_000

// Used counts a request for a nar of the item: for a cached file if kind is not
// empty.
func (c *Cache) Used(hash narinfo.PathHash, kind string) {
	now := time.Now()
	c.uses.mu.Lock()
	defer c.uses.mu.Unlock()
	u := c.uses.pending[hash]
	if u == nil {
		if len(c.uses.pending) == maxPending {
			return
		}
		u = &index.Uses{Hash: hash}
		c.uses.pending[hash] = u
	}
	u.Count++
	u.Last = now
	if kind != "" && !slices.Contains(u.Types, kind) {
		u.Types = append(u.Types, kind)
	}
}

// keepUses writes uses down until the context ends, and a last time then.
func (c *Cache) keepUses(ctx context.Context) {
	for _, k := range c.kinds {
		c.enqueuePopular(ctx, k)
	}
	ticker := time.NewTicker(flushInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.flush(ctx)
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopWait)
			defer cancel()
			c.flush(last)
			return
		}
	}
}

// flushAtOnce bounds the items of one transaction.
const flushAtOnce = 2_000

// flush writes down what was counted, and queues what has become popular.
func (c *Cache) flush(ctx context.Context) {
	c.uses.mu.Lock()
	pending := c.uses.pending
	c.uses.pending = make(map[narinfo.PathHash]*index.Uses)
	c.uses.mu.Unlock()
	all := make([]index.Uses, 0, len(pending))
	for _, u := range pending {
		all = append(all, *u)
	}
	for batch := range slices.Chunk(all, flushAtOnce) {
		var popular []index.Used
		err := c.index.Update(ctx, func(tx *index.Tx) (err error) {
			popular, err = tx.CountUses(batch, int64(c.options.MinUses))
			return err
		})
		if err != nil {
			if ctx.Err() == nil {
				c.log.Error("can't write down how often nars were asked for", "error", err)
			}
			c.putBack(batch)
			continue
		}
		for _, used := range popular {
			for _, k := range c.kinds {
				if !slices.Contains(used.Cached, k.Name) {
					c.queue.add(task{used.Hash, k})
				}
			}
		}
	}
}

// putBack keeps uses that could not be written for the next time.
func (c *Cache) putBack(batch []index.Uses) {
	c.uses.mu.Lock()
	defer c.uses.mu.Unlock()
	for _, u := range batch {
		now := c.uses.pending[u.Hash]
		if now == nil {
			if len(c.uses.pending) < maxPending {
				c.uses.pending[u.Hash] = &u
			}
			continue
		}
		now.Count += u.Count
		for _, kind := range u.Types {
			if !slices.Contains(now.Types, kind) {
				now.Types = append(now.Types, kind)
			}
		}
	}
}

// enqueuePopular queues what an earlier run has counted and not made.
func (c *Cache) enqueuePopular(ctx context.Context, k *kind) {
	for cursor := int64(0); ctx.Err() == nil; {
		hashes, err := c.index.Popular(ctx, k.Name, int64(c.options.MinUses), &cursor)
		if err != nil {
			c.log.Error("can't look for popular nars of earlier runs", "type", k.Name, "error", err)
			return
		}
		if len(hashes) == 0 {
			return
		}
		for _, hash := range hashes {
			if !c.queue.add(task{hash, k}) {
				return // full: the rest comes when it is asked for again
			}
		}
	}
}
