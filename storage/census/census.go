// Package census counts nars by their compression, in the background and at a low rate: the
// index doesn't have these sums.
package census

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

const (
	// rest is how many times as long as it has worked a count rests, so that requests are answered
	// as fast meanwhile. A million items take about a quarter of an hour.
	rest = 39
	// batch is how many items are read between pauses, in about 4 ms.
	batch = 200
	// followEvery is how often new items are counted.
	followEvery = 10 * time.Second
	// maxNames bounds the compressions, as narinfos can name any.
	maxNames = 16
	// recountEvery is how often all are counted again, as items are also removed and changed.
	recountEvery = 24 * time.Hour
)

// Other is the compression of the nars of rare ones, if there are many.
const Other = "other"

// Nars are counts of one compression.
type Nars struct {
	// Named is the number of nars that narinfos name.
	Named int64
	// Stored is how many of them are in the storage, with StoredSize bytes, as far as that is
	// known.
	Stored, StoredSize int64
}

// Counts are the result of a count.
type Counts struct {
	// ByCompression has the nars by the compression in the narinfo.
	ByCompression map[string]Nars
	// Items is the number of items that were counted, without withdrawn ones. NarSize is the
	// sum of their sizes.
	Items, NarSize int64
	// At is when the items were last counted from the first one to the last; zero while that
	// is under way for the first time.
	At time.Time
}

// Census counts. Use [New] to make one.
type Census struct {
	index *index.Index
	log   *slog.Logger
	rest  int // the constant, except in tests
	clock func() time.Time

	mu      sync.Mutex
	current Counts
}

// New makes a census of an index.
func New(x *index.Index, log *slog.Logger) *Census {
	return &Census{index: x, log: log, rest: rest, clock: time.Now}
}

// Counts returns the newest counts. Items that were added since the last full count are
// included; those that were removed or changed since still count.
func (c *Census) Counts() Counts {
	c.mu.Lock()
	defer c.mu.Unlock()
	counts := c.current
	counts.ByCompression = maps.Clone(counts.ByCompression)
	return counts
}

// Run counts until the context ends.
func (c *Census) Run(ctx context.Context) {
	var logged logonce.Filter
	counts, position := Counts{}, int64(-1)
	for {
		var err error
		position, err = c.count(ctx, &counts, position)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			logged.Log(c.log, slog.LevelWarn, c.clock(), "can't count the nars by compression for the home page: will retry", "error", err)
		default:
			logged.Over(c.log, "the nars are counted by compression again")
			if counts.At.IsZero() {
				counts.At = c.clock()
			}
			c.publish(&counts)
		}
		if !counts.At.IsZero() && c.clock().Sub(counts.At) >= recountEvery {
			counts, position = Counts{}, -1
		}
		if pace.Sleep(ctx, followEvery) != nil {
			return
		}
	}
}

// count adds the items after a position, and returns that of the last one.
func (c *Census) count(ctx context.Context, counts *Counts, position int64) (int64, error) {
	n, began := 0, time.Now()
	for item, err := range c.index.ItemsAfter(ctx, position) {
		if errors.Is(err, index.ErrDamaged) {
			continue
		} else if err != nil {
			return position, err
		}
		position = item.Position()
		counts.add(item)
		if n++; n%batch == 0 {
			if c.Counts().At.IsZero() { // or else the counts of the day before are better
				c.publish(counts)
			}
			if err := pace.Sleep(ctx, time.Duration(c.rest)*time.Since(began)); err != nil {
				return position, err
			}
			began = time.Now()
		}
	}
	return position, nil
}

func (c *Census) publish(counts *Counts) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = *counts
	c.current.ByCompression = maps.Clone(counts.ByCompression)
}

// add counts an item.
func (c *Counts) add(item *index.Item) {
	n, err := narinfo.Parse(item.Text)
	if err != nil || !item.WithdrawnAt.IsZero() {
		return
	}
	if c.ByCompression == nil {
		c.ByCompression = make(map[string]Nars)
	}
	c.Items++
	c.NarSize += n.NarSize
	for i, file := range n.Files {
		if item.HasDropped(i) && !item.HasStored(i) {
			continue
		}
		name := file.Compression
		if _, ok := c.ByCompression[name]; !ok && len(c.ByCompression) >= maxNames {
			name = Other
		}
		nars := c.ByCompression[name]
		nars.Named++
		if item.HasStored(i) {
			nars.Stored++
			size := file.Size
			if size < 0 && i < len(item.Sizes) {
				size = item.Sizes[i]
			}
			nars.StoredSize += max(size, 0)
		}
		c.ByCompression[name] = nars
	}
}
