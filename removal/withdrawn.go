package removal

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// withdrawnInterval is how often Withdrawn looks, which takes one look at an
	// index of what is withdrawn.
	withdrawnInterval = time.Second
	// withdrawnBackOff is how long it waits at the most while that fails.
	withdrawnBackOff = time.Minute
	// boundEvery is how often it looks for withdrawals that are dated ahead, and how
	// long after the start at first: a clock that is behind when the machine starts is
	// set right until then.
	boundEvery = time.Hour
)

// Withdrawn removes the items that were withdrawn, each when no client can hold its
// narinfo.
type Withdrawn struct {
	log *slog.Logger
	// failing says that the last try failed.
	failing atomic.Bool
	// Of the storage, but in tests.
	remove func(ctx context.Context, now time.Time) (storage.Freed, error)
	keep   func(ctx context.Context, now time.Time) error
	bound  func(ctx context.Context, now time.Time) (int64, error)
	// boundAt is when bound was called last, or Run began.
	boundAt time.Time
}

// NewWithdrawn removes items from the storage.
func NewWithdrawn(s *storage.Storage, log *slog.Logger) *Withdrawn {
	x := s.Index()
	w := &Withdrawn{log: log, bound: x.BoundTimes}
	w.remove = func(ctx context.Context, now time.Time) (storage.Freed, error) {
		return deletion.RemoveWithdrawn(ctx, s, now)
	}
	w.keep = func(ctx context.Context, now time.Time) error { return w.keepPinned(ctx, x, now) }
	return w
}

// keepPinned takes back withdrawals, when any is due, of what pins have come to
// keep since: a pinned item may have come, or refer to others now.
func (w *Withdrawn) keepPinned(ctx context.Context, x *index.Index, now time.Time) error {
	due, err := x.DeletableItems(ctx, now, 1)
	if err != nil || len(due) == 0 {
		return err
	}
	pinned, err := ReadPinned(ctx, x)
	if err != nil {
		return err
	}
	for _, hash := range pinned.closure.Withdrawn() {
		err := x.Reclaim(ctx, func(tx *index.Tx) error {
			_, err := tx.Restore(hash, time.Now())
			return err
		})
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		w.log.Info("an item that was about to be removed stays, as a pin keeps it", "item", hash.String())
	}
	return nil
}

// Run removes what is due until the context ends. Errors are logged, once each
// time that it begins to fail, and tried again.
func (w *Withdrawn) Run(ctx context.Context) {
	w.boundAt = time.Now()
	wait := withdrawnInterval
	timer := time.NewTimer(0) // something may be due since long ago
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := w.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !w.failing.Swap(true) {
				w.log.Error("items that were withdrawn can't be removed; they stay until it works, and so do bytes without an item", "error", err)
			}
			wait = min(2*wait, withdrawnBackOff)
		default:
			if w.failing.Swap(false) {
				w.log.Info("items that were withdrawn are removed again")
			}
			wait = withdrawnInterval
		}
		timer.Reset(wait)
	}
}

// Warnings are for the health.
func (w *Withdrawn) Warnings() []string {
	if w.failing.Load() {
		return []string{"items that were withdrawn can't be removed, and take room: see the log"}
	}
	return nil
}

func (w *Withdrawn) step(ctx context.Context) error {
	if now := time.Now(); now.Sub(w.boundAt) >= boundEvery {
		w.boundAt = now
		bounded, err := w.bound(ctx, now)
		if err != nil {
			return err
		}
		if bounded > 0 {
			w.log.Warn("times of withdrawals were wrong or missing, as after the clock was wrong or an older version ran: their grace period begins now", "rows", bounded)
		}
	}
	now := time.Now()
	if err := w.keep(ctx, now); err != nil {
		return err
	}
	freed, err := w.remove(ctx, now)
	if freed.Items > 0 {
		w.log.Info("removed items that were withdrawn", "items", freed.Items, "bytes", freed.Size)
	}
	return err
}
