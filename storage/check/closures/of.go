package closures

import (
	"context"
	"errors"
	"iter"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/check"
)

// Of finds what a storage lacks of items and everything that they refer to: narinfos, and nars
// even if other instances or upstreams have them. The names of the roots may be empty. Errors
// are as in [check.Checker.Compare]; looked is called after each item.
func Of(ctx context.Context, s *storage.Storage, roots []narinfo.StorePath, looked func()) iter.Seq2[check.Finding, error] {
	return func(yield func(check.Finding, error) bool) {
		hashes := make([]narinfo.PathHash, len(roots))
		for i, root := range roots {
			hashes[i] = root.Hash
		}
		closure, err := s.Index().Closure(ctx, hashes)
		if err != nil {
			yield(check.Finding{}, err)
			return
		}
		for _, root := range roots {
			if closure.Missing(root.Hash) && !yield(missing(root), nil) {
				return
			}
		}
		items := func(yield func(*storage.Item, error) bool) {
			for row, err := range s.Index().ItemsOf(ctx, closure) {
				var item *storage.Item
				if err == nil {
					item, err = storage.NewItem(row)
				}
				if !yield(item, err) {
					return
				}
			}
		}
		known := newKnown()
		for item, err := range items {
			if err == nil {
				err = checkItem(ctx, s, known, item, yield)
			}
			if errors.Is(err, errStop) {
				return
			}
			if ctx.Err() != nil {
				yield(check.Finding{}, ctx.Err())
				return
			}
			if err != nil && !yield(check.Finding{Item: item}, err) {
				return
			}
		}
		for finding, err := range check.New(s).CompareItems(ctx, items, looked) {
			if !yield(finding, err) {
				return
			}
		}
	}
}

// missing is the finding for a root without a narinfo.
func missing(root narinfo.StorePath) check.Finding {
	if root.Name == "" {
		return check.Finding{Kind: check.Incomplete, Note: "no narinfo for " + root.Hash.String()}
	}
	return check.Finding{Kind: check.Incomplete, References: []narinfo.StorePath{root}, Note: "no narinfo for " + root.String()}
}

// checkItem yields that an item is withdrawn, or refers to items without a narinfo. The error is
// [errStop] when the check is over.
func checkItem(ctx context.Context, s *storage.Storage, known known, item *storage.Item, yield func(check.Finding, error) bool) error {
	if item.WithdrawnAt.IsZero() {
		return checkReferences(ctx, s, known, item, yield)
	}
	if !yield(check.Finding{Kind: check.Incomplete, Item: item, Note: "it is withdrawn"}, nil) {
		return errStop
	}
	return nil
}
