package check

import (
	"context"
	"errors"
	"io/fs"
	"iter"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// CompareItems is [Checker.Compare] for the files of some items, and also finds those without a
// stored nar, even if other instances or upstreams have it. It skips withdrawn items, and errors
// of the iteration.
func (c *Checker) CompareItems(ctx context.Context, items iter.Seq2[*storage.Item, error], looked func()) iter.Seq2[Finding, error] {
	return func(yield func(Finding, error) bool) {
		report, end := c.reporter(ctx, yield)
		for item, err := range items {
			if ctx.Err() != nil {
				yield(Finding{}, ctx.Err())
				return
			}
			if err == nil && item.WithdrawnAt.IsZero() && !c.compareItem(ctx, item, report, yield) {
				return
			}
			looked()
		}
		end()
	}
}

// compareItem yields that an item has no stored nar, and passes its files that seem wrong to
// report. It returns false when the check is over.
func (c *Checker) compareItem(ctx context.Context, item *storage.Item, report func(narinfo.PathHash, string) bool, yield func(Finding, error) bool) bool {
	for n, name := range item.FileNames() {
		if name == "" || c.bytes == nil {
			continue
		}
		info, err := c.bytes.Stat(ctx, name)
		exists := err == nil
		switch {
		case !exists && !errors.Is(err, fs.ErrNotExist):
			if !yield(Finding{Name: name, Item: item}, err) {
				return false
			}
		case exists != item.HasStored(n), exists && info.Size != item.StoredSize(n):
			if !report(item.Hash, name) {
				return false
			}
		}
	}
	if item.Stored != 0 {
		return true
	}
	finding, err := c.notStored(ctx, item)
	return err == nil && finding.Kind != Unstored || yield(finding, err)
}
