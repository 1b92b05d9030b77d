// Package uses counts requests for nars in memory and writes the counts to the index in
// batches, so that serving a nar writes nothing.
package uses

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

const (
	// flushInterval is how often counts are written. A killed process loses at most as
	// much.
	flushInterval = 5 * time.Second
	// closeTimeout limits the last flush: counts are not worth delaying the shutdown.
	closeTimeout = 500 * time.Millisecond
	// flushBatch limits the items of a transaction.
	flushBatch = 2_000
	// maxPending limits the items with unwritten counts while the database can't be
	// written.
	maxPending = 100_000
)

// Counter counts uses. Its methods are safe for concurrent use.
type Counter struct {
	index    *index.Index
	log      *slog.Logger
	troubles logonce.Filter

	mu       sync.Mutex
	pending  map[narinfo.PathHash]*index.Uses
	flushing map[narinfo.PathHash]*index.Uses // being written

	least   int64
	popular func([]index.Used)
}

// New returns a counter for the items of an index. A nil log discards messages.
func New(x *index.Index, log *slog.Logger) *Counter {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Counter{index: x, log: log, pending: make(map[narinfo.PathHash]*index.Uses)}
}

// OnPopular sets a function that receives items with new uses and at least least uses in
// total. Call it before the first use.
func (c *Counter) OnPopular(least int, f func([]index.Used)) { c.least, c.popular = int64(least), f }

// Used counts a request for a nar of the item. kind is the type of the cached file, or ""
// for a file that the narinfo names itself.
func (c *Counter) Used(hash narinfo.PathHash, kind string) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	u := c.pending[hash]
	if u == nil {
		if len(c.pending) == maxPending {
			return
		}
		u = &index.Uses{Hash: hash}
		c.pending[hash] = u
	}
	u.Count++
	u.Last = now
	if kind != "" && !slices.Contains(u.Types, kind) {
		u.Types = append(u.Types, kind)
	}
}

// IsPending reports whether the item has uses that are not written yet.
func (c *Counter) IsPending(hash narinfo.PathHash) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[hash] != nil || c.flushing[hash] != nil
}

// LastUse returns the last use of the item that is not written yet, or the zero time.
func (c *Counter) LastUse(hash narinfo.PathHash) (at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, counts := range []map[narinfo.PathHash]*index.Uses{c.flushing, c.pending} {
		if u := counts[hash]; u != nil {
			at = u.Last
		}
	}
	return at
}

// Pending returns the last use of each item that has uses that are not written yet.
func (c *Counter) Pending() map[narinfo.PathHash]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	last := make(map[narinfo.PathHash]time.Time, len(c.flushing)+len(c.pending))
	for _, counts := range []map[narinfo.PathHash]*index.Uses{c.flushing, c.pending} {
		for hash, u := range counts {
			last[hash] = u.Last
		}
	}
	return last
}

// sinceSetting is the setting with the time when counting began.
const sinceSetting = "uses_since"

// Begin records that counting begins now, unless it began earlier.
func (c *Counter) Begin(ctx context.Context) error {
	if text, err := c.index.Setting(ctx, sinceSetting); err != nil || text != "" {
		return err
	}
	return c.index.Update(ctx, func(tx *index.Tx) error {
		return tx.SetSetting(sinceSetting, time.Now().UTC().Format(time.RFC3339))
	})
}

// Since returns when counting began in an index, or the zero time if that is not recorded.
func Since(ctx context.Context, x *index.Index) (time.Time, error) {
	text, err := x.Setting(ctx, sinceSetting)
	if err != nil || text == "" {
		return time.Time{}, err
	}
	since, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("the setting "+sinceSetting+" in the database: %w", err)
	}
	return since, nil
}

// Run writes counts until the context ends.
func (c *Counter) Run(ctx context.Context) {
	ticker := time.NewTicker(flushInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			c.Flush(ctx)
		case <-ctx.Done():
			return
		}
	}
}

// Close writes the counts for the last time, after Run has returned. It takes half a second
// at most. It logs how many uses are lost if another process holds the lock for longer.
func (c *Counter) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	err := c.flush(ctx)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.pending) == 0 {
		return
	}
	var lost int64
	for _, u := range c.pending {
		lost += u.Count
	}
	c.log.Warn("can't write the usage counts of nars at shutdown: they are lost", "uses", lost, "items", len(c.pending), "error", err)
}

// Flush writes the counts. It keeps those that can't be written for the next flush.
func (c *Counter) Flush(ctx context.Context) {
	if err := c.flush(ctx); err == nil {
		c.troubles.Over(c.log, "the usage counts of nars are written again")
	} else if ctx.Err() == nil {
		c.troubles.Log(c.log, slog.LevelWarn, time.Now(), "can't write the usage counts of nars: will retry", "error", err)
	}
}

func (c *Counter) flush(ctx context.Context) (failure error) {
	c.mu.Lock()
	pending := c.pending
	c.pending, c.flushing = make(map[narinfo.PathHash]*index.Uses), pending
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		c.flushing = nil
		c.mu.Unlock()
	}()
	all := make([]index.Uses, 0, len(pending))
	for _, u := range pending {
		all = append(all, *u)
	}
	for batch := range slices.Chunk(all, flushBatch) {
		var popular []index.Used
		// Reclaim, because items with pending uses can't be removed.
		err := c.index.Reclaim(ctx, func(tx *index.Tx) (err error) {
			popular, err = tx.CountUses(batch, c.least)
			return err
		})
		if err != nil {
			failure = err
			c.putBack(batch)
			continue
		}
		if c.popular != nil {
			c.popular(popular)
		}
	}
	return failure
}

// putBack keeps counts for the next flush.
func (c *Counter) putBack(batch []index.Uses) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, u := range batch {
		now := c.pending[u.Hash]
		if now == nil {
			if len(c.pending) < maxPending {
				c.pending[u.Hash] = &u
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
