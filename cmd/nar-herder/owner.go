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
	"nar-herder/storage/check"
	"nar-herder/storage/index"
	"nar-herder/storage/location"
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

type claimStorageCommand struct {
	databaseOption `embed:""`

	Storage string `required:"" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Yes     string `argumentsonly:"" placeholder:"OWNER-ID" help:"The id of the instance that loses the storage."`

	AcceptLoss bool `argumentsonly:"" help:"Claim a storage that has none of the nars that the index has there."`
}

// Help is shown below the options.
func (claimStorageCommand) Help() string {
	return `One instance writes to a storage and removes from it: its owner. This makes the instance with --database the owner: when the owner's database is lost, to put a front end in its place, or after the database was moved to another path or machine. If another instance is the owner, it is only shown, unless --yes names its id. Its server must be stopped for good, or be restarted with --storage-read-only; it stops writing within half a minute. With --yes, the index is made if there is none. After the loss of all nars, as with their disk, --accept-loss claims the empty storage.

All files that are stored under the names and with the sizes of this index's narinfos are then recorded as stored, and no others; 'nar-herder check --verify' compares their content.`
}

func (c *claimStorageCommand) Run(ctx context.Context, s *streams) (err error) {
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	if err := validateStorage("--storage", c.Storage); err != nil {
		return err
	}
	bytes, err := location.Open(ctx, c.Storage, log)
	if err != nil {
		return err
	}
	found, err := owner.Read(ctx, bytes)
	if err := bytes.Close(); err != nil {
		return err
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	confirmed := found.Instance == c.Yes
	if c.Yes != "" && !confirmed {
		return fmt.Errorf("claim-storage: --yes=%s: storage %s does not belong to that instance, but to %s", c.Yes, bytes, found)
	}
	how := opening{Options: index.Options{Access: index.Write}}
	if c.Yes != "" {
		how.Access = index.Create
	}
	store, err := open(ctx, c.Database, c.Storage, how, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	if !confirmed && (found.Instance != store.self.Instance || !found.IsAt(store.self)) {
		return fmt.Errorf("claim-storage: nothing was changed: storage %s belongs to %s: stop that instance's server, then run this again with --yes=%s", store.name(), found, found.Instance)
	}
	if err := store.IsMounted(ctx); errors.Is(err, storage.ErrAllMissing) && c.AcceptLoss {
		totals, err := store.index.Totals(ctx)
		if err != nil {
			return err
		}
		printf(s.out, "none of the %s that the index has in storage %s are there\n", countOf(int(totals.StoredNars), "nar"), store.name())
	} else if err != nil {
		return err
	}
	if err := owner.Take(ctx, store.bytes, store.self); err != nil {
		return err
	}
	printf(s.out, "storage %s belongs to this instance now; before, it belonged to %s\n", store.name(), found)
	shown := newProgress(s.err, "counting", "files", 0)
	counted, err := check.New(store.Storage).Recount(ctx, func() { shown.add(0) })
	shown.end()
	if err != nil {
		return fmt.Errorf("claim storage %s: %w: run this again", store.name(), err)
	}
	printf(s.out, "%s newly recorded as stored, %s no longer recorded, because missing\n", countOf(int(counted.Recorded), "file"), countOf(int(counted.Missing), "file"))
	return nil
}

type newIdentityCommand struct {
	databaseOption `embed:""`
}

// Help is shown below the options.
func (newIdentityCommand) Help() string {
	return "Each database has a random id, which tells its instance from others. A copy of a database has the same id as its original: run this on the copy, while its server is stopped, to use both. The copy then owns no storage. If the database was only moved, run 'nar-herder claim-storage' instead."
}

func (c *newIdentityCommand) Run(ctx context.Context, s *streams) (err error) {
	store, err := openExisting(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	lock, err := lockServer(c.Database, slog.New(newLogHandler(s.err, slog.LevelWarn)))
	if err != nil {
		return err
	}
	defer lock.Close()
	before := store.Instance()
	if err := store.index.NewInstance(ctx); err != nil {
		return err
	}
	printf(s.out, "database %s is that of instance %s now; before, it was %s\n", c.Database, store.Instance(), before)
	return nil
}
