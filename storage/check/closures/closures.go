// Package closures finds what a storage lacks of closures: of items and everything that they
// refer to.
package closures

import (
	"context"
	"errors"
	"iter"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/index"
)

// knownAtMost bounds the references that a check remembers to exist, of some 100 bytes
// each. Nearly all items refer to the same few thousand.
const knownAtMost = 100_000

// All finds items that refer to others without a narinfo, so that a client can't get a
// complete closure. Withdrawn items count as missing. They are not checked themselves, nor are
// items of an upstream, which has the others, too. Errors are as in [check.Checker.Compare];
// looked is called after each item, and may be nil.
func All(ctx context.Context, s *storage.Storage, looked func()) iter.Seq2[check.Finding, error] {
	if looked == nil {
		looked = func() {}
	}
	return func(yield func(check.Finding, error) bool) {
		known := newKnown()
		for item, err := range s.Items(ctx) {
			switch {
			case errors.Is(err, index.ErrDamaged):
				err = nil // CheckIndex reports it
			case err == nil && item.Origin == 0:
				err = checkReferences(ctx, s, known, item, yield)
			}
			switch {
			case errors.Is(err, errStop):
				return
			case ctx.Err() != nil:
				yield(check.Finding{}, ctx.Err())
				return
			case err != nil && !yield(check.Finding{Item: item}, err):
				return
			}
			looked()
		}
	}
}

// known are references that exist.
type known = *lru.LRU[narinfo.PathHash, struct{}]

func newKnown() known {
	known, err := lru.NewLRU[narinfo.PathHash, struct{}](knownAtMost, nil)
	if err != nil {
		panic(err) // the size is positive
	}
	return known
}

// errStop says that the caller wants no more findings.
var errStop = errors.New("the caller has stopped")

// checkReferences yields that an item refers to items without a narinfo. The error is [errStop]
// when the check is over.
func checkReferences(ctx context.Context, s *storage.Storage, known known, item *storage.Item, yield func(check.Finding, error) bool) error {
	if !item.WithdrawnAt.IsZero() {
		return nil
	}
	asked := *item.Narinfo
	asked.References = nil
	for _, reference := range item.Narinfo.OtherReferences() {
		if _, is := known.Get(reference.Hash); !is {
			asked.References = append(asked.References, reference)
		}
	}
	if len(asked.References) == 0 {
		return nil
	}
	missing, err := s.Index().MissingReferences(ctx, &asked)
	if err != nil {
		return err
	}
	if len(missing) > 0 {
		// The item may have been removed or replaced since it was read.
		now, err := s.Item(ctx, item.Hash)
		if errors.Is(err, storage.ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		if !now.WithdrawnAt.IsZero() {
			return nil
		}
		if missing, err = s.Index().MissingReferences(ctx, &narinfo.Narinfo{StorePath: now.Narinfo.StorePath, References: now.Narinfo.OtherReferences()}); err != nil {
			return err
		}
		if len(missing) == 0 {
			return nil
		}
		names := make([]string, len(missing))
		for i, path := range missing {
			names[i] = path.String()
		}
		if !yield(check.Finding{Kind: check.Incomplete, Item: now, References: missing, Note: "no narinfo for " + strings.Join(names, " ")}, nil) {
			return errStop
		}
		return nil
	}
	for _, reference := range asked.References {
		known.Add(reference.Hash, struct{}{})
	}
	return nil
}
