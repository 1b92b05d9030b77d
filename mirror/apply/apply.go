// Package apply writes the changes of a mirrored instance to a storage.
package apply

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/dropped"
	"nar-herder/storage/index"
)

// Change is a change that the mirrored instance has made.
type Change struct {
	// At is when the first instance made it, to the second.
	At time.Time
	// Narinfo is that of an addition; nil for the removal of the item with that Hash.
	Narinfo *narinfo.Narinfo
	Hash    narinfo.PathHash
	// StorePath is that of a removal, if it is known.
	StorePath string

	entry *index.Entry
}

// Prepare does the part of applying an addition that needs no transaction, so that it can
// run in parallel. Calling it is optional.
func (c *Change) Prepare(x *index.Index) {
	if c.Narinfo != nil {
		c.entry = x.Prepare(c.Narinfo)
	}
}

// Sums counts the outcomes of changes.
type Sums struct {
	Added, Updated, Withdrawn int
	// Known changed nothing. Kept are removals of items that stay, and other nars of items
	// that were added here.
	Known, Kept int
}

// Add adds others.
func (s *Sums) Add(o Sums) {
	s.Added += o.Added
	s.Updated += o.Updated
	s.Withdrawn += o.Withdrawn
	s.Known += o.Known
	s.Kept += o.Kept
}

// Options are for [Changes].
type Options struct {
	// Keeps reports whether an item stays here although the mirrored instance has
	// removed it; nil for none.
	Keeps func(narinfo.PathHash) bool
	// Within is called in the transaction before the changes; nil for nothing. Its error
	// aborts the transaction. It may be called twice.
	Within func(*index.Tx) error
}

// Changes applies changes of the mirrored instance in one transaction. It writes rows only:
// nars are fetched later. Items that were added here stay as they are. Items that were
// removed there are withdrawn here, and deleted when no client can hold their narinfos.
func Changes(ctx context.Context, s *storage.Storage, changes []Change, options Options) (sums Sums, err error) {
	entries := make([]*index.Entry, len(changes))
	transact := s.Index().Reclaim // may call its function twice
	for i, change := range changes {
		if change.Narinfo != nil {
			transact = s.Index().Update
			if entries[i] = change.entry; entries[i] == nil {
				entries[i] = s.Index().Prepare(change.Narinfo)
			}
			entries[i].AddedAt, entries[i].Mirrored = change.At, true
		}
	}
	var obsolete []string
	var withdrawn []narinfo.PathHash
	var begin time.Time
	err = transact(ctx, func(tx *index.Tx) error {
		sums, obsolete, withdrawn = Sums{}, nil, nil
		if options.Within != nil {
			if err := options.Within(tx); err != nil {
				return err
			}
		}
		begin = s.Now()
		for i, change := range changes {
			if change.Narinfo == nil {
				outcome, err := applyRemoval(s, tx, change, begin, options.Keeps)
				if err != nil {
					return fmt.Errorf("%s: %w", change.Hash, err)
				}
				if outcome.Withdrawn > 0 {
					withdrawn = append(withdrawn, change.Hash)
				}
				sums.Add(outcome)
				continue
			}
			outcome, names, err := applyAddition(s, tx, change, entries[i])
			if err != nil {
				return fmt.Errorf("%s: %w", change.Narinfo.StorePath.BaseName(), err)
			}
			sums.Add(outcome)
			obsolete = append(obsolete, names...)
		}
		if !s.HasBytes() {
			return nil
		}
		return tx.AddPendingDeletes(obsolete)
	})
	if err != nil {
		return Sums{}, err
	}
	if err := s.Postpone(ctx, begin, withdrawn); err != nil {
		return sums, err
	}
	if _, _, err := s.DeleteUnclaimed(ctx, obsolete, 0); err != nil {
		s.Log().Warn("files that no narinfo names any more could not be removed from the storage", "error", err)
	}
	return sums, nil
}

// applyRemoval withdraws an item.
func applyRemoval(s *storage.Storage, tx *index.Tx, change Change, now time.Time, keeps func(narinfo.PathHash) bool) (Sums, error) {
	row, err := tx.Item(change.Hash)
	var damage *index.Damage
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return Sums{Known: 1}, nil
	case errors.As(err, &damage):
		if keeps != nil && keeps(change.Hash) {
			return Sums{Kept: 1}, nil
		}
		// Its files are unknown until it is repaired, which completes the removal.
		withdrawn, err := tx.WithdrawDamaged(damage, change.StorePath, now, change.At)
		if err != nil || !withdrawn {
			return Sums{Kept: 1}, err
		}
		s.Log().Warn("the mirrored instance has removed an item that is damaged here: it is hidden, and removed when it is repaired", "error", damage)
		return Sums{Withdrawn: 1}, nil
	case err != nil:
		return Sums{}, err
	case !row.WithdrawnAt.IsZero():
		return Sums{Known: 1}, nil
	case !row.Mirrored:
		return Sums{Kept: 1}, nil
	case row.Stored != 0 && keeps != nil && keeps(change.Hash):
		// From now on it is a local item, so its nar must be stored here.
		return Sums{Kept: 1}, tx.SetMirrored(change.Hash, false)
	}
	if _, err := tx.WithdrawAs(change.Hash, now, change.At); err != nil {
		return Sums{}, err
	}
	// An import that restores it makes it a local item.
	return Sums{Withdrawn: 1}, tx.SetMirrored(change.Hash, false)
}

// applyAddition writes an item's row, and returns the names of the stored files that the row
// no longer claims.
func applyAddition(s *storage.Storage, tx *index.Tx, change Change, entry *index.Entry) (sums Sums, obsolete []string, err error) {
	n := change.Narinfo
	row, err := tx.Item(n.StorePath.Hash)
	var damage *index.Damage
	if errors.As(err, &damage) {
		row, err = tx.Renew(damage, entry)
	}
	if errors.Is(err, storage.ErrNotFound) {
		return Sums{Added: 1}, nil, tx.Put(entry, nil)
	} else if err != nil {
		return sums, nil, err
	}
	// Files that were dropped here stay dropped.
	if bytes.Equal(row.Text, n.Text) || bytes.Equal(row.Announced(), n.Text) {
		if !row.WithdrawnAt.IsZero() {
			if _, err := tx.Restore(row.Hash, change.At); err != nil {
				return sums, nil, err
			}
			return Sums{Updated: 1}, nil, setMirrored(tx, row)
		}
		return Sums{Known: 1}, nil, setMirrored(tx, row)
	}
	old, err := storage.NewItem(row)
	if err != nil {
		return sums, nil, err
	}
	if files, ok := dropped.In(old, n.Text); ok && (old.Mirrored || !old.WithdrawnAt.IsZero()) {
		// Its files stay until no client has a narinfo that names them.
		return Sums{Updated: 1}, nil, dropAs(tx, old, files, change.At, s.Now())
	}
	if !old.Mirrored && old.Origin == 0 && old.WithdrawnAt.IsZero() {
		// It has another signature or another nar: the local one stays.
		if old.Narinfo.NarHash != n.NarHash {
			s.Log().Warn("the mirrored instance has another nar of an item that was added here: keeping the local one", "item", n.StorePath.String())
		}
		return Sums{Kept: 1}, nil, nil
	}
	// The files of another nar have the same names: they must be unclaimed before
	// others can be fetched in their place.
	storage.CarryStored(entry, old)
	if s.HasBytes() {
		obsolete = old.NarNames()
	}
	return Sums{Updated: 1}, obsolete, tx.Put(entry, row)
}

// setMirrored records that the mirrored instance has an item, which is not of an upstream then.
func setMirrored(tx *index.Tx, row *index.Item) error {
	if row.Origin != 0 {
		if err := tx.SetOrigin(row.Hash, 0, time.Time{}); err != nil {
			return err
		}
	}
	if row.Mirrored {
		return nil
	}
	return tx.SetMirrored(row.Hash, true)
}

// dropAs drops the files that the mirrored instance has dropped, besides those that were
// dropped here, if any file is left then.
func dropAs(tx *index.Tx, item *storage.Item, files uint64, at, now time.Time) error {
	if !item.WithdrawnAt.IsZero() {
		if _, err := tx.Restore(item.Hash, at); err != nil {
			return err
		}
		if err := setMirrored(tx, item.Item); err != nil {
			return err
		}
	}
	err := tx.SetDropped(item.Hash, item.Dropped|files, now)
	if errors.Is(err, index.ErrAllDropped) {
		err = tx.SetDropped(item.Hash, files, now)
	}
	return err
}
