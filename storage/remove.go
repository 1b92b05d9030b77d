package storage

import (
	"context"
	"errors"
	"fmt"
	"path"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// ErrElsewhere says that an item can't be removed, since its bytes are in a storage that
// was not opened with the index: they would be left behind.
var ErrElsewhere = errors.New("its nars are in a storage and would stay there")

// Removal is the result for one item.
type Removal struct {
	Hash narinfo.PathHash
	// StorePath is set if the item is known.
	StorePath narinfo.StorePath
	// Bytes is the length of the files that were or will be deleted.
	Bytes int64
	// WithdrawnAt is when the item was withdrawn before; zero if it was not.
	WithdrawnAt time.Time
	// Left says that the item is removed, and that Err is about its bytes.
	Left bool
	// Err is [ErrNotFound] when there is no such item.
	Err error
}

// Remove deletes an item: its row first, then its bytes. The error is [ErrNotFound] if
// there is none. If the bytes can't be deleted, the item is removed all the same, and the
// error says what is left.
func (s *Storage) Remove(ctx context.Context, hash narinfo.PathHash) (Removal, error) {
	removals, err := s.RemoveAll(ctx, []narinfo.PathHash{hash}, nil)
	if err != nil {
		return Removal{}, err
	}
	return removals[0], removals[0].Err
}

// BatchSize is how many items callers should give RemoveAll and WithdrawAll at a time.
// Other processes can't write meanwhile, and a slow disk can take tens of milliseconds to
// delete a file.
const BatchSize = 100

// RemoveAll deletes items: their rows in one transaction, then their bytes. guard
// re-validates the decision within the transaction; it may be nil. Its error, or any other
// of the transaction, is returned, and nothing has changed then. An error about one item
// is in its result.
//
// The error is [ErrNotOwner] if another instance owns the byte store.
func (s *Storage) RemoveAll(ctx context.Context, hashes []narinfo.PathHash, guard func(*index.Tx) error) ([]Removal, error) {
	if err := s.MayDelete(ctx); errors.Is(err, ErrNotOwner) {
		return nil, err // otherwise the bytes would stay for ever
	}
	var removals []Removal
	var names []string
	var owners []int // owners[i] is the number of the item that names[i] belongs to
	var last int64
	err := s.index.Reclaim(ctx, func(tx *index.Tx) error {
		if guard != nil {
			if err := guard(tx); err != nil {
				return err
			}
		}
		removals, names, owners = make([]Removal, 0, len(hashes)), nil, nil
		for n, hash := range hashes {
			removal, item, err := outgoing(tx, hash)
			if err != nil {
				return err
			}
			if removal.Err == nil && s.bytes == nil && item.Stored != 0 {
				removal.Err = ErrElsewhere
			}
			if removal.Err == nil {
				if err := tx.Remove(hash, s.now()); err != nil {
					return err
				}
				// This includes files that are stored but not recorded, as after a crash.
				for _, name := range item.NarNames() {
					names, owners = append(names, name), append(owners, n)
				}
				removal.Bytes = 0 // until they are deleted
			}
			removals = append(removals, removal)
		}
		if s.bytes != nil {
			if err := tx.AddPendingDeletes(names); err != nil {
				return err
			}
		}
		var err error
		last, err = tx.LastChange()
		return err
	})
	if err != nil {
		return nil, err
	}
	// The rows are deleted: a file that is not deleted now stays until a server deletes it.
	ctx, cancel := linger.Context(ctx, linger.Second)
	defer cancel()
	err = s.DeleteEach(ctx, names, last, func(n int, dropped Freed, err error) {
		removal := &removals[owners[n]]
		removal.Bytes += dropped.Size
		if err != nil {
			removal.Left, removal.Err = true, errors.Join(removal.Err, err)
		}
	})
	if err != nil {
		for _, n := range owners {
			removals[n].Left, removals[n].Err = true, err
		}
	}
	for n := range removals {
		if removals[n].Left {
			removals[n].Err = fmt.Errorf("the item is removed, but bytes of it are left in storage %s, which the server deletes when it can: %w", s.bytes, removals[n].Err)
		}
	}
	return removals, nil
}

// outgoing reads an item that is to be removed. An error about the item alone is
// removal.Err.
func outgoing(tx *index.Tx, hash narinfo.PathHash) (removal Removal, item *Item, err error) {
	removal.Hash = hash
	row, err := tx.Item(hash)
	if errors.Is(err, ErrNotFound) || errors.Is(err, index.ErrDamaged) {
		removal.Err = err
		return removal, nil, nil
	} else if err != nil {
		return removal, nil, err
	}
	if item, removal.Err = NewItem(row); removal.Err != nil {
		return removal, nil, nil
	}
	removal.StorePath = item.Narinfo.StorePath
	removal.WithdrawnAt = item.WithdrawnAt
	removal.Bytes = item.StoredBytes()
	return removal, item, nil
}

// slowWithdrawal is how long a withdrawal may take before its time is corrected: less than
// the reserve that a grace period has for it.
const slowWithdrawal = 300 * time.Millisecond

// WithdrawAll hides the items from clients in one transaction. Package removal/deletion
// removes them when their grace has ended. Results and guard are as in
// [Storage.RemoveAll]. Items that were withdrawn before keep their times.
func (s *Storage) WithdrawAll(ctx context.Context, hashes []narinfo.PathHash, guard func(*index.Tx) error) ([]Removal, error) {
	if err := s.MayDelete(ctx); errors.Is(err, ErrNotOwner) {
		return nil, err
	}
	var removals []Removal
	var begin time.Time
	err := s.index.Reclaim(ctx, func(tx *index.Tx) error {
		if guard != nil {
			if err := guard(tx); err != nil {
				return err
			}
		}
		begin = s.now()
		removals = make([]Removal, 0, len(hashes))
		for _, hash := range hashes {
			removal, _, err := outgoing(tx, hash)
			if err != nil {
				return err
			}
			if removal.Err == nil {
				if _, err := tx.Withdraw(hash, begin); err != nil {
					return err
				}
			}
			removals = append(removals, removal)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	withdrawn := make([]narinfo.PathHash, 0, len(removals))
	for _, removal := range removals {
		if removal.Err == nil && removal.WithdrawnAt.IsZero() {
			withdrawn = append(withdrawn, removal.Hash)
		}
	}
	if err := s.Postpone(ctx, begin, withdrawn); err != nil {
		return nil, err
	}
	return removals, nil
}

// Postpone corrects the time of items that have just been withdrawn if that took long:
// clients got the narinfos until the transaction was committed.
func (s *Storage) Postpone(ctx context.Context, begin time.Time, withdrawn []narinfo.PathHash) error {
	end := s.now()
	if len(withdrawn) == 0 || end.Sub(begin) <= slowWithdrawal {
		return nil
	}
	ctx, cancel := linger.Context(ctx, linger.Second)
	defer cancel()
	return s.index.Reclaim(ctx, func(tx *index.Tx) error {
		for _, hash := range withdrawn {
			if err := tx.Postpone(hash, end); err != nil {
				return err
			}
		}
		return nil
	})
}

// DeleteAfter returns when items that are withdrawn now may be deleted.
func (s *Storage) DeleteAfter(ctx context.Context) (time.Time, error) {
	return s.index.DeleteAfter(ctx, s.now())
}

// HashInName returns the path hash that the name of a nar begins with, or the zero hash,
// which no item has.
func HashInName(name string) narinfo.PathHash {
	hash, _ := findHash(name)
	return hash
}

// findHash returns the path hash that the name of a nar begins with, if there is one.
func findHash(name string) (hash narinfo.PathHash, found bool) {
	base := path.Base(name)
	if len(base) < narinfo.PathHashLen {
		return hash, false
	}
	hash, err := narinfo.ParsePathHash(base[:narinfo.PathHashLen])
	return hash, err == nil
}
