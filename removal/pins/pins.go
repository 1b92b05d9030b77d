// Package pins finds the items that pins keep: pinned items and the closures of their
// references.
package pins

import (
	"context"
	"errors"
	"slices"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// Set is the set of all items that pins keep, as of one moment.
type Set struct {
	closure *index.Closure
	pins    []index.Pin
	// asOf is the last change up to which the set is known to be current.
	asOf int64
}

// Read reads the pins and follows their references.
func Read(ctx context.Context, x *index.Index) (*Set, error) {
	p := new(Set)
	var err error
	// Read this first, so that Guard checks changes that happen meanwhile.
	if p.asOf, err = x.LastChange(ctx); err != nil {
		return nil, err
	}
	if p.pins, err = x.Pins(ctx); err != nil {
		return nil, err
	}
	roots := make([]narinfo.PathHash, len(p.pins))
	for i, pin := range p.pins {
		roots[i] = pin.Hash
	}
	p.closure, err = x.Closure(ctx, roots)
	return p, err
}

// IsCurrent reports whether the pins are the same as when they were read.
func (p *Set) IsCurrent(ctx context.Context, x *index.Index) (bool, error) {
	now, err := x.Pins(ctx)
	return slices.Equal(now, p.pins), err
}

// By returns a pin that keeps the item, if any.
func (p *Set) By(hash narinfo.PathHash) (pin narinfo.PathHash, kept bool) {
	return p.closure.Root(hash)
}

// Closure returns the pinned items and all items that they refer to.
func (p *Set) Closure() *index.Closure { return p.closure }

// Withdrawn returns the items that pins keep and that are withdrawn.
func (p *Set) Withdrawn() []narinfo.PathHash { return p.closure.Withdrawn() }

// ErrChanged says that pins may keep more items than were read.
var ErrChanged = errors.New("pins, or items that they keep, have changed since they were read")

// Guard returns nil if, within the transaction, pins keep no more items than the set has. It
// notices pins of other processes.
func (p *Set) Guard(tx *index.Tx) error {
	pins, err := tx.Pins()
	if err != nil {
		return err
	}
	for _, pin := range pins {
		// The set already has the closure of its items.
		if !p.closure.Has(pin.Hash) {
			return ErrChanged
		}
	}
	changed, last, complete, err := tx.ChangedSince(p.asOf)
	if err != nil {
		return err
	}
	if !complete {
		return ErrChanged
	}
	for hash, kind := range changed {
		// An item that was added, or added again, may have other references.
		if kind == index.Added && p.closure.Has(hash) {
			return ErrChanged
		}
	}
	p.asOf = last
	return nil
}
