// Package withdrawal deletes withdrawn items and dropped files after their grace period.
package withdrawal

import (
	"context"
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/removal/deletion"
	"nar-herder/removal/pins"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

const (
	// withdrawnInterval is how often the Remover looks for due items: one query of the index.
	withdrawnInterval = time.Second
	// boundEvery is how often it looks for withdrawals that are dated ahead. The first time is
	// this long after the start, when the clock of the machine has been set.
	boundEvery = time.Hour
)

// withdrawnBackoff is how long it waits after failures.
var withdrawnBackoff = pace.Backoff{First: 2 * withdrawnInterval, Last: time.Minute}

// Remover removes withdrawn items and dropped files, each when no client can hold a narinfo
// that names it.
type Remover struct {
	log *slog.Logger
	// failing says that the last attempt failed.
	failing atomic.Bool
	// Tests replace these functions.
	remove func(ctx context.Context, now time.Time) (storage.Freed, error)
	drop   func(ctx context.Context, now time.Time) (storage.Freed, int, error)
	keep   func(ctx context.Context, now time.Time) error
	bound  func(ctx context.Context, now time.Time) (int64, error)
	// boundAt is when bound was called last, or Run began.
	boundAt time.Time
}

// New removes items from the storage.
func New(s *storage.Storage, log *slog.Logger) *Remover {
	w := &Remover{log: log, bound: s.Index().BoundTimes}
	w.remove = func(ctx context.Context, now time.Time) (storage.Freed, error) {
		return deletion.RemoveWithdrawn(ctx, s, now)
	}
	w.drop = func(ctx context.Context, now time.Time) (storage.Freed, int, error) {
		return deletion.DeleteDropped(ctx, s, now)
	}
	w.keep = func(ctx context.Context, now time.Time) error { return w.keepPinned(ctx, s.Index(), now) }
	return w
}

// keepPinned restores withdrawn items that pins keep by now, when any withdrawal is due: a
// pinned item may have been added since, or refer to others now.
func (w *Remover) keepPinned(ctx context.Context, x *index.Index, now time.Time) error {
	due, err := x.DeletableItems(ctx, now, 1)
	if err != nil || len(due) == 0 {
		return err
	}
	pinned, err := pins.Read(ctx, x)
	if err != nil {
		return err
	}
	for _, hash := range pinned.Withdrawn() {
		err := x.Reclaim(ctx, func(tx *index.Tx) error {
			_, err := tx.Restore(hash, time.Now())
			return err
		})
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		w.log.Info("restored a withdrawn item that a pin keeps", "item", hash.String())
	}
	return nil
}

// Run removes due items until the context ends. It logs the first of several failures in a row,
// and retries.
func (w *Remover) Run(ctx context.Context) {
	w.boundAt = time.Now()
	failures := 0
	// Begin at once, because an item may be overdue.
	for wait := time.Duration(0); pace.Sleep(ctx, wait) == nil; {
		wait = withdrawnInterval
		err := w.step(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !w.failing.Swap(true) {
				w.log.Error("can't remove withdrawn items, or dropped files: retrying", "error", err)
			}
			failures++
			wait = withdrawnBackoff.After(failures)
		default:
			if w.failing.Swap(false) {
				w.log.Info("withdrawn items and dropped files can be removed again")
			}
			failures = 0
		}
	}
}

// Warnings returns warnings for the health page.
func (w *Remover) Warnings() []string {
	if w.failing.Load() {
		return []string{"withdrawn items or dropped files can't be removed, and take room: see the log"}
	}
	return nil
}

func (w *Remover) step(ctx context.Context) error {
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
	if ctx.Err() != nil {
		return err
	}
	freed, kept, dropErr := w.drop(ctx, now)
	if freed.Items > 0 {
		w.log.Info("deleted files that were dropped", "items", freed.Items, "bytes", freed.Size)
	}
	if kept > 0 {
		w.log.Warn("dropped files are announced again, because the other files of their items are missing: run 'nar-herder check'", "items", kept)
	}
	return errors.Join(err, dropErr)
}
