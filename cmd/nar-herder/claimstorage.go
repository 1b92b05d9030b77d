package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"

	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/location"
	"nar-herder/storage/owner"
	"nar-herder/storage/recount"
)

type claimStorageCommand struct {
	databaseOption `embed:""`

	Storage string `group:"storage" required:"" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	Yes     string `group:"work" argumentsonly:"" placeholder:"OWNER-ID" help:"Id of the instance that loses the storage."`

	AcceptLoss bool `group:"work" argumentsonly:"" help:"Claim the storage even if all nars in the index are missing there."`
}

// Help is shown below the options.
func (claimStorageCommand) Help() string {
	return `Only the owner of a storage, one instance, writes to it and removes from it. This command makes the instance with --database the owner: after the owner's database was lost, or moved to another path or machine, or to replace the owner by a front end.

If another instance is the owner, the command only shows it, unless --yes gives its id. Stop the server of that instance for good, or restart it with --storage-read-only; it stops writing within half a minute. With --yes, a missing index is created. If all nars are lost, as with a broken disk, --accept-loss claims the empty storage.

Then the index records as stored exactly the files that have the name and size that its narinfos give. To compare their content, run 'nar-herder check --verify'.`
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
		return fmt.Errorf("claim-storage: --yes=%s: storage %s belongs to %s, not to that instance", c.Yes, bytes, found)
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
		printf(s.out, "none of the %s that the index has in storage %s exist\n", countOf(int(totals.StoredNars), "nar"), store.name())
	} else if err != nil {
		return err
	}
	if err := owner.Take(ctx, store.bytes, store.self); err != nil {
		return err
	}
	printf(s.out, "storage %s belongs to this instance now; it belonged to %s before\n", store.name(), found)
	shown := newProgress(s.err, "counting", "files", 0)
	counted, err := recount.Claims(ctx, store.Storage, func() { shown.add(0) })
	shown.end()
	if err != nil {
		return fmt.Errorf("claim storage %s: %w: run this again", store.name(), err)
	}
	printf(s.out, "%s newly recorded as stored, %s no longer recorded because missing\n", countOf(int(counted.Recorded), "file"), countOf(int(counted.Missing), "file"))
	return nil
}
