package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/storage"
	"nar-herder/storage/owner"
)

const (
	// acquireWait is how long the start of the server waits to read the owner of the
	// storage. Later, the owner is read at ownerInterval.
	acquireWait   = 3 * time.Second
	ownerInterval = 10 * time.Second
)

// ownership watches the owner of the server's storage, for the log and the health, and claims a
// storage that could not be read at the start. The storage itself checks its owner before it
// writes or removes anything.
type ownership struct {
	claim *owner.Claim // nil for a storage that is only read
	log   *slog.Logger
	// failure is why the storage is not written; nil if it is.
	failure atomic.Pointer[error]
}

// errUnclaimed wraps the reason not to claim a storage without an owner, which seems not to be
// the storage of the index.
var errUnclaimed = errors.New("the storage has no owner, and this instance does not claim it")

// own claims the storage for this instance, or returns an error if another instance owns it.
// If the owner can't be read now, Run retries.
func (c *serverCommand) own(ctx context.Context, store *opened, log *slog.Logger) (*ownership, error) {
	o := &ownership{log: log}
	if store.claim == nil || c.StorageReadOnly {
		return o, nil
	}
	o.claim = store.claim
	isMounted := o.claim.IsMounted
	o.claim.IsMounted = func(ctx context.Context) error {
		if err := isMounted(ctx); err != nil {
			return fmt.Errorf("%w: %w", errUnclaimed, err)
		}
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, acquireWait)
	defer cancel()
	if converted, err := store.index.Setting(ctx, convertedSetting); err != nil {
		return nil, err
	} else if c.Mirror != nil && converted == store.name() {
		o.claim.Policy = owner.Always
	}
	err := o.claim.Acquire(wait)
	if errors.Is(err, storage.ErrNotOwner) {
		return nil, fmt.Errorf("--storage: %w", err)
	}
	o.note(err)
	return o, nil
}

// note records and logs the outcome of a claim.
func (o *ownership) note(err error) {
	failure := &err
	if err == nil {
		failure = nil
	}
	switch before := o.failure.Swap(failure); {
	case err == nil && before != nil:
		o.log.Info("the storage belongs to this instance: writes are enabled again")
	case err != nil && before == nil:
		o.log.Error("writes to the storage and removals are disabled; use --storage-read-only for servers that only read it", "error", err)
	}
}

// Run watches the owner until the context ends.
func (o *ownership) Run(ctx context.Context) {
	for o.claim != nil && pace.Sleep(ctx, ownerInterval) == nil {
		if err := o.claim.Acquire(ctx); ctx.Err() == nil {
			o.note(err)
		}
	}
}

// Warnings returns the warnings for the health.
func (o *ownership) Warnings() []string {
	failure := o.failure.Load()
	switch {
	case failure == nil:
		return nil
	case errors.Is(*failure, storage.ErrNotOwner):
		return []string{"the storage belongs to another instance now: this server no longer writes to it, and removes nothing"}
	case errors.Is(*failure, errUnclaimed) && !errors.Is(*failure, storage.ErrAllMissing):
		return []string{"the storage has no owner, and lacks nars that the index has, or can't be read: this server does not write to it, and removes nothing, until the storage is complete (see 'nar-herder copy-storage') or 'nar-herder claim-storage' records the nars that exist"}
	}
	return []string{"the owner of the storage can't be confirmed: this server does not write to it, and removes nothing, until it is"}
}
