// Package uses counts requests for nars in memory, so that answering them writes
// nothing, and writes them down in batches.
package uses

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

const (
	// flushInterval is how often uses are written down. So much is lost of the
	// counts when the process is killed.
	flushInterval = 5 * time.Second
	// lastFlush is how long the writing may take when the program ends. Uses are
	// worth no more than that of the time that its supervisor gives it.
	lastFlush = 500 * time.Millisecond
	// flushAtOnce bounds the items of one transaction.
	flushAtOnce = 2_000
	// maxPending bounds the items with uses that are not written yet, if the database
	// can't be written.
	maxPending = 100_000
)

// Counter counts. Its methods may be called from several goroutines at once.
type Counter struct {
	index *index.Index
	log   *slog.Logger

	mu       sync.Mutex
	pending  map[narinfo.PathHash]*index.Uses
	flushing map[narinfo.PathHash]*index.Uses // being written down

	least   int64
	popular func([]index.Used)
}

// New makes a counter for the items of an index. log is for operators; nil drops
// it.
func New(x *index.Index, log *slog.Logger) *Counter {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Counter{index: x, log: log, pending: make(map[narinfo.PathHash]*index.Uses)}
}

// OnPopular has f called with items that are asked for, and have been at least so
// often in all. It is called before the first use.
func (c *Counter) OnPopular(least int, f func([]index.Used)) { c.least, c.popular = int64(least), f }

// Used counts a request for a nar of the item: for a cached file if kind, its
// type, is not empty.
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

// IsPending says whether a use of the item is counted and not written down yet.
func (c *Counter) IsPending(hash narinfo.PathHash) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending[hash] != nil || c.flushing[hash] != nil
}

// sinceSetting is since when uses are counted.
const sinceSetting = "uses_since"

// Begin notes since when uses are counted, if that is not known yet.
func (c *Counter) Begin(ctx context.Context) error {
	if text, err := c.index.Setting(ctx, sinceSetting); err != nil || text != "" {
		return err
	}
	return c.index.Update(ctx, func(tx *index.Tx) error {
		return tx.SetSetting(sinceSetting, time.Now().UTC().Format(time.RFC3339))
	})
}

// Since is since when uses are counted in an index; zero where that was not
// noted.
func Since(ctx context.Context, x *index.Index) (time.Time, error) {
	text, err := x.Setting(ctx, sinceSetting)
	if err != nil || text == "" {
		return time.Time{}, err
	}
	since, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, fmt.Errorf("since when uses are counted, in the database: %w", err)
	}
	return since, nil
}

// Run writes uses down until the context ends.
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

// Close writes uses down for the last time, after Run has ended, within half a second.
// What can't be written until then, as another process has the database locked, is
// lost, and the log says how much.
func (c *Counter) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), lastFlush)
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
	c.log.Warn("uses of nars could not be written down before the end, and are lost", "uses", lost, "items", len(c.pending), "error", err)
}

// Flush writes down what was counted. What can't be written is kept for the next
// time.
func (c *Counter) Flush(ctx context.Context) {
	if err := c.flush(ctx); err != nil && ctx.Err() == nil {
		c.log.Error("can't write down how often nars were asked for", "error", err)
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
	for batch := range slices.Chunk(all, flushAtOnce) {
		var popular []index.Used
		// What has uses that are not written down is not removed.
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

// putBack keeps uses that could not be written for the next time.
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
