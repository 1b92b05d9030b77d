package removal

import (
	"context"
	"slices"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// pinned is the closure of all pinned items.
type pinned struct {
	pins    []index.Pin
	closure *index.Closure
	// asOf is the number of the change that it is up to date with.
	asOf int64
}

// refresh brings the closure up to date with the index, as it was at the change
// of the given number or later.
func (p *pinned) refresh(ctx context.Context, x *index.Index, at int64) error {
	pins, err := x.Pins(ctx)
	if err != nil {
		return err
	}
	if p.closure != nil && slices.Equal(pins, p.pins) {
		if len(pins) == 0 {
			p.asOf = at
			return nil
		}
		changed, last, complete, err := x.ChangedSince(ctx, p.asOf)
		if err != nil {
			return err
		}
		if complete && !p.touched(changed) {
			p.asOf = last
			return nil
		}
	}
	roots := make([]narinfo.PathHash, len(pins))
	for i, pin := range pins {
		roots[i] = pin.Hash
	}
	closure, err := x.Closure(ctx, roots)
	if err != nil {
		return err
	}
	p.pins, p.closure, p.asOf = pins, closure, at
	return nil
}

// touched says whether changes may have made the closure another: an item of it
// that came, or refers to others now.
func (p *pinned) touched(changed map[narinfo.PathHash]index.ChangeKind) bool {
	for hash, kind := range changed {
		if kind == index.Added && p.closure.Has(hash) {
			return true
		}
	}
	return false
}

// has says whether the item is in the closure.
func (p *pinned) has(hash narinfo.PathHash) bool { return p.closure.Has(hash) }

// check looks within a transaction whether the closure is still good.
func (p *pinned) check(tx *index.Tx, changed map[narinfo.PathHash]index.ChangeKind) error {
	pins, err := tx.Pins()
	if err != nil {
		return err
	}
	if !slices.Equal(pins, p.pins) || p.touched(changed) {
		return storage.ErrOutdated
	}
	return nil
}
