package cached

import (
	"context"
	"maps"
	"slices"

	"nar-herder/narinfo"
)

// mostLost bounds the lost items of a kind. A scan finds the others.
const mostLost = 10_000

// lose records that the item's file is missing. It returns false if that was recorded before,
// or there are too many.
func (k *kind) lose(path narinfo.StorePath) bool {
	k.hiddenMu.Lock()
	defer k.hiddenMu.Unlock()
	if _, known := k.lost[path.Hash]; known || len(k.lost) == mostLost {
		return false
	}
	k.lost[path.Hash] = path
	return true
}

// forgetLost removes the rows of missing files.
func (c *Cache) forgetLost(ctx context.Context, k *kind) error {
	k.hiddenMu.Lock()
	lost := slices.Collect(maps.Values(k.lost))
	k.hiddenMu.Unlock()
	for _, path := range lost {
		_, removed, err := c.reconcile(ctx, k, path)
		if err != nil {
			return err
		}
		k.hiddenMu.Lock()
		delete(k.lost, path.Hash)
		k.hiddenMu.Unlock()
		if !removed {
			c.changed(path.Hash) // the narinfo names the file again
		}
	}
	return nil
}
