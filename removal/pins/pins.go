// Package pins knows which items pins keep: those that are pinned, and all that they need.
package pins

import (
	"context"
	"errors"
	"slices"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// Set is all that pins keep, as it was at one moment.
type Set struct {
	closure *index.Closure
	pins    []index.Pin
	// asOf is the newest change that is known not to have changed it.
	asOf int64
}

// Read reads the pins and follows their references.
func Read(ctx context.Context, x *index.Index) (*Set, error) {
	p := new(Set)
	var err error
	// First, so that Guard checks changes that happen while the rest is read.
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

// Withdrawn returns the items that pins keep and that are withdrawn.
func (p *Set) Withdrawn() []narinfo.PathHash { return p.closure.Withdrawn() }

// ErrChanged says that pins may keep more than was known.
var ErrChanged = errors.New("pins, or items that they keep, have changed since they were read")

// Guard returns nil when the pins keep no more than is known, as a transaction
// sees them, also when another process has just set one.
func (p *Set) Guard(tx *index.Tx) error {
	pins, err := tx.Pins()
	if err != nil {
		return err
	}
	for _, pin := range pins {
		// One in the closure keeps nothing that isn't there as well.
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
		// An item that came, or came anew, may refer to others.
		if kind == index.Added && p.closure.Has(hash) {
			return ErrChanged
		}
	}
	p.asOf = last
	return nil
}
