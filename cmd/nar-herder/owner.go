package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"nar-herder/peer"
	"nar-herder/storage"
)

const (
	// settleWait is how long the start waits until it is known whose the storage is,
	// askWait how long for the instance that is mirrored to say which it has, and
	// settleEvery how often it is asked after that.
	settleWait  = 3 * time.Second
	askWait     = 2 * time.Second
	settleEvery = 5 * time.Second
)

// settleOwner finds out whether the storage is that of the instance that is
// mirrored, the first of the peers, which this one is a front end of then. What it
// returns goes on trying where that could not be found out yet.
func (c *serverCommand) settleOwner(ctx context.Context, store *opened, peers peer.Peers, log *slog.Logger) (goOn func(context.Context), err error) {
	done := func(context.Context) {}
	if c.Storage == "" {
		return done, nil
	}
	wait, cancel := context.WithTimeout(ctx, settleWait)
	defer cancel()
	if c.Mirror == nil {
		c.settleAlone(wait, store, log)
		return done, nil
	}
	if err = c.settle(wait, store, peers[0], log); err == nil || ctx.Err() != nil {
		return done, nil
	}
	if store.IsFrontEnd() {
		log.Warn("this is a front end, as before; whether its storage is still that of the mirrored instance can't be found out yet", "error", err)
	} else {
		log.Warn("it is not known yet whether the storage is that of the mirrored instance; until that answers, nothing is stored or removed", "error", err)
		store.Unsettle()
	}
	return func(ctx context.Context) {
		ticker := time.NewTicker(settleEvery)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			}
			if c.settle(ctx, store, peers[0], log) == nil {
				return
			}
		}
	}, nil
}

// settleAlone says whose the storage is where no instance is mirrored, and claims what
// is nobody's and has this index's nars.
func (c *serverCommand) settleAlone(ctx context.Context, store *opened, log *slog.Logger) {
	if store.IsFrontEnd() {
		log.Warn("this was a front end, and goes on as one without an instance to mirror: give --mirror, or see 'nar-herder help claim-storage'", "storage", store.name())
		return
	}
	owner, err := store.Owner(ctx)
	if err == nil && owner == "" {
		totals, totalsErr := store.Totals(ctx)
		if totalsErr == nil && totals.StoredNars == 0 {
			return // whoever stores the first nar has it
		}
		err = store.MayDelete(ctx)
	}
	switch {
	case err != nil:
		log.Warn("the storage can't be made this instance's yet; that is tried again before anything is removed", "storage", store.name(), "error", err)
	case owner != "" && owner != store.Instance():
		log.Warn("the storage belongs to another instance, and is only read: see 'nar-herder help claim-storage'", "storage", store.name(), "owner", owner)
	}
}

// settle finds out whether the storage is that of the source, and notes it. It returns
// an error where that is not sure.
func (c *serverCommand) settle(ctx context.Context, store *opened, source *peer.Peer, log *slog.Logger) error {
	owner, err := store.Owner(ctx)
	if err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, askWait)
	defer cancel()
	instance, name, err := source.Names(asking)
	if err == nil {
		if store.SetCopied(instance == store.Instance()); instance == store.Instance() {
			return storage.ErrCopied
		}
	}
	if owner == store.Instance() {
		return store.SetFrontEnd(ctx, false)
	}
	if owner != "" && owner == instance {
		return c.isFrontEnd(ctx, store, log) // whatever it can't tell
	}
	if err != nil {
		return err
	}
	if instance == "" && store.IsFrontEnd() {
		// What has answered is not the instance of before, or not all of it.
		return errors.New("the mirrored instance does not say which it is")
	}
	shares, err := store.SharesWith(ctx, name)
	if err != nil {
		return err
	}
	if shares {
		return c.isFrontEnd(ctx, store, log)
	}
	if store.IsFrontEnd() {
		log.Warn("the storage is not that of the mirrored instance, so this instance is no longer a front end: it fetches and removes nars after a restart", "storage", store.name())
	}
	if owner != "" {
		log.Warn("the storage belongs to another instance, and is only read: see 'nar-herder help claim-storage'", "storage", store.name(), "owner", owner)
	}
	if err := store.SetFrontEnd(ctx, false); err != nil {
		return err
	}
	if owner == "" && c.MirrorNars != "none" {
		// Best known before a nar comes.
		if err := store.MayDelete(ctx); errors.Is(err, storage.ErrNotOwner) {
			log.Warn("nothing is stored or removed: the storage may be that of another instance", "storage", store.name(), "error", err)
		}
	}
	return nil
}

func (c *serverCommand) isFrontEnd(ctx context.Context, store *opened, log *slog.Logger) error {
	log.Info("this is a front end: its storage is that of the mirrored instance, which alone writes and removes there", "storage", store.name())
	return store.SetFrontEnd(ctx, true)
}

type claimStorageCommand struct {
	databaseOption `embed:""`

	Storage string `required:"" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
}

// Help is what else there is to say.
func (claimStorageCommand) Help() string {
	return `One instance writes to a storage and removes from it: the first that did. Others with the same storage, such as front ends, only read. This makes the instance with --database that one: when the database of the one before is lost, or to put a front end in its place. Its server must be stopped for good before, or be about to become a front end. Restart this instance's server after it, without --mirror if that named the one before.

The index then has all files as stored that are there under the names and with the sizes that its narinfos give; 'nar-herder check --verify' compares their content.`
}

func (c *claimStorageCommand) Run(ctx context.Context, s *streams) (err error) {
	log := slog.New(newLogHandler(s.err, slog.LevelWarn))
	store, err := openExisting(ctx, c.Database, c.Storage, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	shown := newProgress(s.err, "looking", "files", 0)
	taken, err := store.TakeOver(ctx, func() { shown.add(0) })
	shown.end()
	if err != nil {
		return fmt.Errorf("claim storage %s: %w: run this again", store.name(), err)
	}
	switch taken.Before {
	case store.Instance():
		fmt.Fprintln(s.out, "the storage was this instance's already")
	case "":
		fmt.Fprintln(s.out, "the storage is this instance's now; it was nobody's")
	default:
		printf(s.out, "the storage is this instance's now; it was that of instance %s\n", taken.Before)
	}
	printf(s.out, "%d files are recorded as stored that were not; %d are of no item, or of another size\n", taken.Recorded, taken.Strangers)
	if taken.Missing > 0 {
		printf(s.out, "%d files were recorded that are not there, and are not any more\n", taken.Missing)
	}
	return nil
}
