package check

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"strings"

	"nar-herder/storage"
	"nar-herder/storage/index"
)

// UnstoredOptions are for [Checker.CheckUnstored].
type UnstoredOptions struct {
	// Elsewhere says that other instances provide nars that were removed here, so that
	// items without nars are not findings.
	Elsewhere bool
	// Partial also finds items that have some of their nars in the storage.
	Partial bool
}

// CheckUnstored finds items without a nar in the storage: clients get 404 for the URLs in
// their narinfos. It skips withdrawn items, those that the mirrored instance or an upstream
// has, and unrecorded files, which [Checker.Compare] finds. Errors are as there; looked is called
// after each item, and may be nil.
func (c *Checker) CheckUnstored(ctx context.Context, options UnstoredOptions, looked func()) iter.Seq2[Finding, error] {
	if looked == nil {
		looked = func() {}
	}
	return func(yield func(Finding, error) bool) {
		if options.Elsewhere && !options.Partial {
			return
		}
		for item, err := range c.Items(ctx) {
			if ctx.Err() != nil {
				yield(Finding{}, ctx.Err())
				return
			}
			var finding Finding
			if errors.Is(err, index.ErrDamaged) {
				err = nil // CheckIndex reports it
			} else if err == nil {
				finding, err = c.unstored(ctx, item, options)
			}
			if (err != nil || finding.Kind == Unstored) && !yield(finding, err) {
				return
			}
			looked()
		}
	}
}

// unstored looks at one item. The kind of the finding is Unknown when nothing is to be
// reported.
func (c *Checker) unstored(ctx context.Context, item *storage.Item, options UnstoredOptions) (Finding, error) {
	partial := item.Stored != 0
	if !item.WithdrawnAt.IsZero() || item.Origin != 0 || partial && !options.Partial || !partial && (item.Mirrored || options.Elsewhere) {
		return Finding{}, nil
	}
	return c.notStored(ctx, item)
}

// notStored returns the finding that nars of an item are not stored, if that is so.
func (c *Checker) notStored(ctx context.Context, item *storage.Item) (Finding, error) {
	var names []string
	for n, name := range item.FileNames() {
		if name == "" || item.HasStored(n) || item.IsUnwanted(n) {
			continue
		}
		if c.bytes != nil {
			if _, err := c.bytes.Stat(ctx, name); err == nil {
				return Finding{}, nil
			} else if !errors.Is(err, fs.ErrNotExist) {
				return Finding{Name: name, Item: item}, err
			}
		}
		names = append(names, name)
	}
	if len(names) == 0 { // the item has no file that a storage could have
		return Finding{}, nil
	}
	// Another process may have stored or removed it since it was read.
	now, err := c.Item(ctx, item.Hash)
	if errors.Is(err, storage.ErrNotFound) || err == nil && (now.Stored != item.Stored || !now.WithdrawnAt.IsZero()) {
		return Finding{}, nil
	} else if err != nil {
		return Finding{Item: item}, err
	}
	return Finding{Kind: Unstored, Item: item, Partial: item.Stored != 0, Note: "not in the storage: " + strings.Join(names, " ")}, nil
}

// unstored fetches an item's nars that are not in the storage, as far as the sources have
// them.
func (r *Repairer) unstored(ctx context.Context, finding Finding) (repair Repair) {
	if len(r.options.Sources) == 0 {
		return Repair{Note: "no other instance to fetch it from was named"}
	}
	item := finding.Item
	unsure := false
	for n, name := range item.FileNames() {
		// The index can't record a file without its size.
		if name == "" || item.HasStored(n) || item.IsUnwanted(n) || item.StoredSize(n) < 0 {
			continue
		}
		file := Finding{Kind: Missing, Name: name, Item: item}
		fetched, one := r.fetch(ctx, file)
		if fetched != nil {
			one = r.restore(ctx, file, fetched, one)
		}
		if one.Err != nil {
			repair.Err = one.Err
			return repair
		}
		if one.Outcome != Fetched {
			unsure = unsure || one.unsure
			if repair.Outcome != Fetched {
				repair.Note = one.Note
			}
			continue
		}
		repair.Outcome, repair.Mended, repair.Note = Fetched, true, one.Note
		repair.Bytes += one.Bytes
		now, err := r.c.Item(ctx, item.Hash)
		if err != nil {
			repair.Err = err
			return repair
		}
		item = now
	}
	if unsure && !finding.Partial && !repair.Mended {
		repair.Err = errUnsure
	}
	return repair
}
