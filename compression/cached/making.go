package cached

import (
	"context"
	"maps"
	"slices"
	"time"

	"nar-herder/narinfo"
)

// Making is a cached nar that is being made.
type Making struct {
	Path  narinfo.StorePath
	Type  string
	Since time.Time
}

// Making returns at most n of the cached nars that are being made, the longest running first.
func (c *Cache) Making(ctx context.Context, n int) (all []Making) {
	c.queue.mu.Lock()
	running := maps.Clone(c.queue.running)
	c.queue.mu.Unlock()
	tasks := slices.SortedFunc(maps.Keys(running), func(a, b task) int { return running[a].Compare(running[b]) })
	for _, t := range tasks[:min(len(tasks), n)] {
		if path, err := c.path(ctx, t.hash); err == nil { // else it was removed, or is damaged
			all = append(all, Making{path, t.kind.Name, running[t]})
		}
	}
	return all
}
