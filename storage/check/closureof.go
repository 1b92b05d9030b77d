package check

import (
	"context"
	"errors"
	"io/fs"
	"iter"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// CheckClosureOf finds what this storage lacks of items and everything that they refer to:
// narinfos, and nars even if other instances or upstreams have them. The names of the roots may
// be empty. Errors are as in [Checker.Compare]; looked is called after each item.
func (c *Checker) CheckClosureOf(ctx context.Context, roots []narinfo.StorePath, looked func()) iter.Seq2[Finding, error] {
	return func(yield func(Finding, error) bool) {
		hashes := make([]narinfo.PathHash, len(roots))
		for i, root := range roots {
			hashes[i] = root.Hash
		}
		closure, err := c.index.Closure(ctx, hashes)
		if err != nil {
			yield(Finding{}, err)
			return
		}
		for _, root := range roots {
			if !closure.Missing(root.Hash) {
				continue
			}
			note := "no narinfo for " + root.Hash.String()
			if root.Name != "" {
				note = "no narinfo for " + root.String()
			}
			if !yield(Finding{Kind: Incomplete, References: []narinfo.StorePath{root}, Note: note}, nil) {
				return
			}
		}
		report, end := c.reporter(ctx, yield)
		known := newKnown()
		for row, err := range c.index.ItemsOf(ctx, closure) {
			var item *storage.Item
			if err == nil {
				item, err = storage.NewItem(row)
			}
			if err == nil {
				err = c.checkHere(ctx, item, known, report, yield)
			}
			switch {
			case errors.Is(err, errStop):
				return
			case ctx.Err() != nil:
				yield(Finding{}, ctx.Err())
				return
			case err != nil && !yield(Finding{Item: item}, err):
				return
			}
			looked()
		}
		end()
	}
}

// checkHere yields what this storage lacks of an item and of the narinfos of its references. It
// passes files that seem wrong to report. The error is [errStop] when the check is over.
func (c *Checker) checkHere(ctx context.Context, item *storage.Item, known *lru.LRU[narinfo.PathHash, struct{}], report func(narinfo.PathHash, string) bool, yield func(Finding, error) bool) error {
	if !item.WithdrawnAt.IsZero() {
		if !yield(Finding{Kind: Incomplete, Item: item, Note: "it is withdrawn"}, nil) {
			return errStop
		}
		return nil
	}
	for n, name := range item.FileNames() {
		if name == "" || c.bytes == nil {
			continue
		}
		info, err := c.bytes.Stat(ctx, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		is := err == nil && info.Size == item.StoredSize(n)
		if is == item.HasStored(n) && is == (err == nil) {
			continue
		}
		if !report(item.Hash, name) {
			return errStop
		}
	}
	if item.Stored == 0 {
		finding, err := c.notStored(ctx, item)
		if err != nil {
			return err
		}
		if finding.Kind == Unstored && !yield(finding, nil) {
			return errStop
		}
	}
	return c.checkClosure(ctx, known, item, yield)
}
