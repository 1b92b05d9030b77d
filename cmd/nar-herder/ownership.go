package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/owner"
)

const (
	// acquireWait is how long the start of the server waits for its storage to say who
	// owns it, and ownerInterval how often it is asked after that.
	acquireWait   = 3 * time.Second
	ownerInterval = 10 * time.Second
)

// lock reserves a file or directory of this machine for this process and instance, by a
// lock file. option names it in the error.
func (o *opened) lock(option, path string) error {
	lock, err := owner.NewLock(path, o.self)
	if err != nil {
		return fmt.Errorf("%s: %w", option, err)
	}
	o.locks = append(o.locks, lock)
	warnUnlocked(lock, option, o.log)
	return nil
}

// warnUnlocked logs why a lock does not protect what the option names.
func warnUnlocked(lock *owner.Lock, option string, log *slog.Logger) {
	if lock.Unlocked != nil {
		log.Warn("can't lock what the option names: make sure that no other instance uses it", "option", option, "error", lock.Unlocked)
	}
}

// lockDirectory is lock for a directory.
func (o *opened) lockDirectory(option, name string) error {
	return o.lock(option+name, filepath.Join(name, bytestore.OwnerName))
}

// lockServer makes sure that there is one server, or command that needs none, per
// database.
func lockServer(database string, log *slog.Logger) (*owner.Lock, error) {
	lock, err := owner.NewDatabaseLock(database)
	var used *owner.InUseError
	if errors.As(err, &used) {
		return nil, fmt.Errorf("--database=%s: %w", database, err)
	} else if err != nil {
		if denied := index.MayWrite(database); denied != nil {
			return nil, fmt.Errorf("--database=%s can't be written: %w", database, denied)
		}
		return nil, fmt.Errorf("--database=%s can't be written: %w: let the user or group of this process write its directory", database, err)
	}
	warnUnlocked(lock, "--database="+database, log)
	return lock, nil
}

// lockDump reserves the path of dumps, unless another process of this instance has done
// so: dumps are made beside the server.
func (o *opened) lockDump(path string) error {
	err := o.lock("--database-dump="+path, path+".owner")
	var used *owner.InUseError
	if errors.As(err, &used) && used.IsRunning && used.Instance == o.self.Instance && used.IsAt(o.self) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // no dump can be made there either
	}
	return err
}

// following is the default of a path: beside the database, as in the defaults of the
// original.
func following(database, suffix string) string {
	return strings.TrimSuffix(database, filepath.Ext(database)) + suffix
}

// ownership watches who owns the server's storage, for its log and its health, and claims
// a storage that could not be read when the server started. Before anything is written or
// removed, the storage itself checks its owner.
type ownership struct {
	claim *owner.Claim // nil for a storage that is only read
	log   *slog.Logger
	// failure is why nothing is written to the storage; nil where it is.
	failure atomic.Pointer[error]
}

// errUnclaimed is in the error for a storage that this instance may own, but that seems to
// be another than the one that the index is about.
var errUnclaimed = errors.New("the storage has no owner, and is not claimed")

// own makes this instance the owner of the storage, or refuses to start where it is
// another's. Where that can't be found out now, Run tries again.
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

// note records whether the storage is this instance's.
func (o *ownership) note(err error) {
	failure := &err
	if err == nil {
		failure = nil
	}
	switch before := o.failure.Swap(failure); {
	case err == nil && before != nil:
		o.log.Info("the storage belongs to this instance: it writes there again")
	case err != nil && before == nil:
		o.log.Error("nothing is written to the storage or removed from it; --storage-read-only is for servers that only read it", "error", err)
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

// Warnings are for the health.
func (o *ownership) Warnings() []string {
	failure := o.failure.Load()
	switch {
	case failure == nil:
		return nil
	case errors.Is(*failure, storage.ErrNotOwner):
		return []string{"the storage belongs to another instance now: this server no longer writes to it, and removes nothing"}
	case errors.Is(*failure, errUnclaimed) && !errors.Is(*failure, storage.ErrAllMissing):
		return []string{"the storage has no owner, and lacks nars that the index has, or can't be read: this server does not write to it, and removes nothing, until the storage is complete (see 'nar-herder copy-storage'), or 'nar-herder claim-storage' records which nars are there"}
	}
	return []string{"the owner of the storage can't be confirmed: this server does not write to it, and removes nothing, until it is"}
}
