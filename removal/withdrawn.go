package removal

import (
	"context"
	"log/slog"
	"time"

	"nar-herder/storage"
)

const (
	// withdrawnInterval is how often Withdrawn looks, which takes one look at an
	// index of what is withdrawn.
	withdrawnInterval = time.Second
	// withdrawnBackOff is how long it waits at the most while that fails.
	withdrawnBackOff = time.Minute
)

// Withdrawn removes the items that were withdrawn, when the grace period of each
// is over.
type Withdrawn struct {
	grace time.Duration
	log   *slog.Logger
	// Of the storage, but in tests.
	remove func(ctx context.Context, until time.Time) (storage.Freed, error)
	note   func(ctx context.Context, grace time.Duration) error
}

// NewWithdrawn removes items from the storage. grace is the longest that a client
// may use a narinfo after the item was withdrawn.
func NewWithdrawn(s *storage.Storage, grace time.Duration, log *slog.Logger) *Withdrawn {
	return &Withdrawn{grace, log, s.RemoveWithdrawn, s.NoteGrace}
}

// Run removes what is due until the context ends. Errors are logged, once each
// time that it begins to fail, and tried again.
func (w *Withdrawn) Run(ctx context.Context) {
	noted, failing := false, false
	wait := withdrawnInterval
	timer := time.NewTimer(0) // something may be due since long ago
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := w.step(ctx, &noted)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if !failing {
				w.log.Error("items that were withdrawn can't be removed; they stay until it works, and so do bytes without an item", "error", err)
			}
			failing = true
			wait = min(2*wait, withdrawnBackOff)
		default:
			if failing {
				w.log.Info("items that were withdrawn are removed again")
			}
			failing = false
			wait = withdrawnInterval
		}
		timer.Reset(wait)
	}
}

func (w *Withdrawn) step(ctx context.Context, noted *bool) error {
	if !*noted {
		if err := w.note(ctx, w.grace); err != nil {
			return err
		}
		*noted = true
	}
	freed, err := w.remove(ctx, time.Now().Add(-w.grace))
	if freed.Items > 0 {
		w.log.Info("removed items that were withdrawn", "items", freed.Items, "bytes", freed.Size, "grace", w.grace)
	}
	return err
}
