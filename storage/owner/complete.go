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

// claimSamples is the maximum number of items that [IsComplete] checks.
const claimSamples = 25

// IsComplete is for a storage without an owner, which may not be the one that the index
// describes. It returns an error if the storage isn't mounted, or if many nars are missing,
// as in an unfinished or an old copy. It checks a sample of the stored nars, and allows a
// quarter of it to be missing: in a small sample, that may be chance.
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
	checks, ctx := errgroup.WithContext(ctx)
	checks.SetLimit(s.Concurrency())
	for _, name := range names {
		checks.Go(func() error {
			_, err := s.NarStore().Stat(ctx, name)
			if errors.Is(err, fs.ErrNotExist) {
				missing.Add(1)
				return nil
			}
			return err
		})
	}
	if err := checks.Wait(); err != nil {
		return err
	}
	if n := missing.Load(); n > 1 && n > int64(len(names))/4 {
		return fmt.Errorf("storage %s lacks %d of %d sampled nars: is it the right one, and is the copy complete? If there is no better one, run 'nar-herder claim-storage': it makes this instance the owner, and records which nars are missing", s.ByteStore(), n, len(names))
	}
	return nil
}
