// Package named removes items that an administrator names.
package named

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"nar-herder/narinfo"
	"nar-herder/removal/pins"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Remover removes items that an administrator names.
type Remover struct {
	Storage *storage.Storage
	// Now deletes rows and bytes at once. Otherwise the items are withdrawn, for
	// [withdrawal.Remover] to remove them.
	Now bool
	// Force also removes items that pins keep.
	Force bool
	// DryRun reports what would be removed, and changes nothing.
	DryRun bool

	// fault makes the transaction with these items fail, in tests.
	fault func([]narinfo.PathHash) error
}

// PinnedError says that a pin keeps an item.
type PinnedError struct {
	// Pin is the base name of the pinned item, or its hash: the named item, or one that needs
	// it.
	Pin string
	// Itself says that the named item itself is pinned.
	Itself bool
}

func (e *PinnedError) Error() string {
	if e.Itself {
		return "it is pinned"
	}
	return "it is needed by " + e.Pin + ", which is pinned"
}

const (
	// pinTries is how often pins are read anew for one batch.
	pinTries = 10
	// batchFailures is after how many items in a row that fail alone the remover assumes
	// that the items are not the cause.
	batchFailures = 3
)

// Do removes the items, in batches, and reports the outcome of each, in order. The error is
// one that stopped it. It does nothing if the storage may not be this instance's, or may not
// be mounted.
func (r *Remover) Do(ctx context.Context, hashes []narinfo.PathHash, report func(storage.Removal)) error {
	if err := r.Storage.MayDelete(ctx); err != nil {
		return err
	}
	var pinned *pins.Set
	if !r.Force {
		var err error
		if pinned, err = pins.Read(ctx, r.Storage.Index()); err != nil {
			return err
		}
	}
	for len(hashes) > 0 {
		batch := hashes[:min(len(hashes), storage.BatchSize)]
		hashes = hashes[len(batch):]
		removals, err := r.batch(ctx, batch, &pinned)
		if err != nil && ctx.Err() == nil {
			removals, err = r.oneByOne(ctx, batch, err, &pinned), nil
		}
		for _, removal := range removals {
			report(removal)
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// oneByOne removes the items of a failed batch one by one, because a single item may have
// caused the failure.
func (r *Remover) oneByOne(ctx context.Context, batch []narinfo.PathHash, err error, pinned **pins.Set) (removals []storage.Removal) {
	failures := 0
	for _, hash := range batch {
		one := []storage.Removal{{Hash: hash, Err: err}}
		if failures < batchFailures && len(batch) > 1 {
			done, failure := r.batch(ctx, []narinfo.PathHash{hash}, pinned)
			if failure != nil {
				one[0].Err, err = failure, failure
				failures++
			} else {
				one, failures = done, 0
			}
		}
		removals = append(removals, one...)
	}
	return removals
}

// batch removes items in one transaction.
func (r *Remover) batch(ctx context.Context, hashes []narinfo.PathHash, pinned **pins.Set) ([]storage.Removal, error) {
	for range pinTries {
		removals := make([]storage.Removal, 0, len(hashes))
		free := make([]narinfo.PathHash, 0, len(hashes)) // of pins
		for _, hash := range hashes {
			refusal, err := r.refuse(ctx, hash, *pinned)
			if err != nil {
				return nil, err
			}
			if refusal == nil {
				free = append(free, hash)
			}
			removals = append(removals, storage.Removal{Hash: hash, Err: refusal})
		}
		done, err := r.remove(ctx, free, *pinned)
		if errors.Is(err, pins.ErrChanged) {
			if *pinned, err = pins.Read(ctx, r.Storage.Index()); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		for n := range removals {
			if removals[n].Err == nil {
				removals[n], done = done[0], done[1:]
			}
		}
		return removals, nil
	}
	return nil, fmt.Errorf("%w repeatedly: try again when no import is running", pins.ErrChanged)
}

// refuse returns why an item may not be removed; nil if it may.
func (r *Remover) refuse(ctx context.Context, hash narinfo.PathHash, pinned *pins.Set) (refusal, err error) {
	if pinned == nil {
		return nil, nil
	}
	pin, kept := pinned.By(hash)
	if !kept {
		return nil, nil
	}
	item, err := r.Storage.Item(ctx, pin)
	if errors.Is(err, storage.ErrNotFound) {
		return &PinnedError{pin.String(), pin == hash}, nil
	} else if err != nil {
		return nil, err
	}
	return &PinnedError{item.Narinfo.StorePath.BaseName(), pin == hash}, nil
}

// remove removes or withdraws items that no pin keeps, or looks at them in a dry run.
func (r *Remover) remove(ctx context.Context, hashes []narinfo.PathHash, pinned *pins.Set) ([]storage.Removal, error) {
	guard := func(tx *index.Tx) error {
		if r.fault != nil {
			if err := r.fault(hashes); err != nil {
				return err
			}
		}
		if pinned == nil {
			return nil
		}
		return pinned.Guard(tx)
	}
	switch {
	case len(hashes) == 0:
		return nil, nil
	case r.DryRun:
		return r.look(ctx, hashes)
	case r.Now:
		return r.Storage.RemoveAll(ctx, hashes, guard)
	}
	return r.Storage.WithdrawAll(ctx, hashes, guard)
}

// look reports what would be removed.
func (r *Remover) look(ctx context.Context, hashes []narinfo.PathHash) ([]storage.Removal, error) {
	removals := make([]storage.Removal, 0, len(hashes))
	for _, hash := range hashes {
		removal := storage.Removal{Hash: hash}
		item, err := r.Storage.Item(ctx, hash)
		switch {
		case errors.Is(err, storage.ErrNotFound):
			removal.Err = storage.ErrNotFound
		case err != nil:
			return nil, err
		case r.Now && item.Stored != 0 && !r.Storage.HasBytes():
			removal.Err = storage.ErrElsewhere
		default:
			removal.StorePath, removal.WithdrawnAt, removal.Bytes = item.Narinfo.StorePath, item.WithdrawnAt, item.StoredBytes()
		}
		removals = append(removals, removal)
	}
	return removals, nil
}

// scanShare is one of how many items must be removed for a scan of all references to be
// faster than looking up the referrers of each removed item.
const scanShare = 100

// Broken counts the remaining items that refer to a removed one, and lists the first of them,
// at most as many as wanted.
func Broken(ctx context.Context, x *index.Index, gone map[narinfo.PathHash]struct{}, most int) (some []narinfo.PathHash, count int, err error) {
	found := func(hash narinfo.PathHash) {
		if count++; len(some) < most {
			some = append(some, hash)
		}
	}
	totals, err := x.Totals(ctx)
	if err != nil {
		return nil, 0, err
	}
	if int64(len(gone)) > totals.Items/scanShare {
		for hash, err := range x.Referring(ctx, gone) {
			if err != nil {
				return nil, 0, err
			}
			if _, goes := gone[hash]; !goes {
				found(hash)
			}
		}
		return some, count, nil
	}
	seen := make(map[narinfo.PathHash]struct{})
	// Sorted, so that the result is the same each time.
	ordered := slices.SortedFunc(maps.Keys(gone), func(a, b narinfo.PathHash) int { return bytes.Compare(a[:], b[:]) })
	for _, hash := range ordered {
		referrers, err := x.Referrers(ctx, hash)
		if err != nil {
			return nil, 0, err
		}
		for _, referrer := range referrers {
			_, goes := gone[referrer]
			_, known := seen[referrer]
			if goes || known {
				continue
			}
			seen[referrer] = struct{}{}
			item, err := x.Item(ctx, referrer)
			if err != nil && !errors.Is(err, storage.ErrNotFound) {
				return nil, 0, err
			}
			if err == nil && item.WithdrawnAt.IsZero() {
				found(referrer)
			}
		}
	}
	return some, count, nil
}
