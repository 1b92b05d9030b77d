package owner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"

	"golang.org/x/sync/errgroup"

	"nar-herder/storage"
	"nar-herder/storage/index"
)

// claimSamples is how many items [IsComplete] looks at, at the most.
const claimSamples = 25

// IsComplete is for a storage without an owner, which may be another than before. It
// returns an error where the storage isn't mounted, or where many of the nars are missing,
// as in an unfinished or an old copy. It looks at some of them, spread over those that the
// index has as stored, and allows a quarter to be missing: of so few, that may be chance.
func IsComplete(ctx context.Context, s *storage.Storage) error {
	if err := s.IsMounted(ctx); err != nil {
		return err
	}
	totals, err := s.Index().Totals(ctx)
	if err != nil {
		return err
	}
	step := max(1, (totals.StoredNars+claimSamples-1)/claimSamples)
	var names []string
	for place := int64(0); ; {
		row, err := s.Index().StoredAfter(ctx, place, step-1)
		var damage *index.Damage
		if errors.As(err, &damage) && damage.Position() > place {
			place = damage.Position()
			continue
		}
		if err != nil {
			return err
		}
		if row == nil {
			break
		}
		place = row.Position()
		item, err := storage.NewItem(row)
		if errors.Is(err, index.ErrDamaged) {
			continue
		} else if err != nil {
			return err
		}
		for n, name := range item.FileNames() {
			if name != "" && item.HasStored(n) {
				names = append(names, name)
			}
		}
	}
	var missing atomic.Int64
	looking, ctx := errgroup.WithContext(ctx)
	looking.SetLimit(s.Concurrency())
	for _, name := range names {
		looking.Go(func() error {
			_, err := s.Bytes().Stat(ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				missing.Add(1)
				return nil
			}
			return err
		})
	}
	if err := looking.Wait(); err != nil {
		return err
	}
	if n := missing.Load(); n > 1 && n > int64(len(names))/4 {
		return fmt.Errorf("storage %s lacks %d of %d nars that were looked for: is it the right one, and was it copied to its end? If it is all that there is, 'nar-herder claim-storage' makes it this instance's, and records which nars are there", s.Store(), n, len(names))
	}
	return nil
}
