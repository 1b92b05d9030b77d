package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"nar-herder/narinfo/signing"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/indexmetrics"
	"nar-herder/storage/location"
	"nar-herder/storage/owner"
	"nar-herder/storage/tiered"
)

// databaseOption is the option of all commands that use the index.
type databaseOption struct {
	Database string `default:"/var/lib/nar-herder/nar_herder.db" placeholder:"FILE" help:"SQLite index (default: ${default})."`
}

// opened is an index with its storage, to be closed together.
type opened struct {
	*storage.Storage
	index *index.Index
	bytes location.Store // nil without a storage
	cache *tiered.Tiered // in front of bytes; nil without one
	self  owner.Owner
	log   *slog.Logger
	claim *owner.Claim  // nil without a storage
	locks []*owner.Lock // on directories and files for one instance
}

// validateStorage returns an error for the URL of a bucket that is invalid whatever the
// server says. The error names the option.
func validateStorage(option, store string) error {
	if err := location.Validate(store); err != nil {
		return usagef("%s: %w", option, err)
	}
	return nil
}

// beginWait bounds the time to read the owner of the storage.
const beginWait = 10 * time.Second

// mayBegin returns an error if the index is missing and the storage belongs to another
// instance: usually the file system of the database isn't mounted, and clients would get
// 404 for all items. The policy says whether the caller would claim a storage without an
// owner.
func mayBegin(ctx context.Context, database string, bytes bytestore.Store, policy owner.Policy) error {
	isThere := func() bool {
		info, err := os.Stat(database)
		return err == nil && info.Size() > 0 || err != nil && !errors.Is(err, fs.ErrNotExist)
	}
	if isThere() {
		return nil // opening a damaged or unreadable index fails
	}
	ctx, cancel := context.WithTimeout(ctx, beginWait)
	defer cancel()
	found, err := owner.Read(ctx, bytes)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return (&owner.Claim{Store: bytes, Policy: policy}).MayClaim(ctx)
	case err != nil:
		return fmt.Errorf("database %s is missing or empty, and the owner of storage %s can't be read: %w: try again", database, bytes, err)
	case isThere():
		return nil // another process has created the index and claimed the storage
	}
	return fmt.Errorf("database %s is missing or empty, but storage %s belongs to %s: is the file system of the database mounted? Name that database with --database, or restore it; if it is gone for good, 'nar-herder claim-storage --yes=%s' begins a new index", database, bytes, found, found.Instance)
}

// opening has the options to open an index and its storage.
type opening struct {
	index.Options
	policy   owner.Policy
	readOnly bool            // never write to the storage
	cache    *tiered.Options // only for the server; nil for none
	keys     *signing.Keys   // that are authorized to sign items; nil for any key
}

// open opens the index, and the storage unless its name is empty. With [index.Create], it
// creates a missing index, unless the storage belongs to another instance and the policy is
// to claim it.
func open(ctx context.Context, database, store string, how opening, log *slog.Logger) (_ *opened, err error) {
	if err := validateStorage("--storage", store); err != nil {
		return nil, err
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	o := &opened{log: log}
	defer func() {
		if err != nil {
			err = errors.Join(err, o.close())
		}
	}()
	var bytes bytestore.Store // a nil location.Store in it would not be nil
	if store != "" {
		if o.bytes, err = location.Open(ctx, store, log); err != nil {
			return nil, err
		}
		bytes = o.bytes
		if how.Access == index.Create && how.policy != owner.Never && !how.readOnly {
			if err := mayBegin(ctx, database, bytes, how.policy); err != nil {
				return nil, err
			}
		}
	}
	if err := index.CheckLog(database); err != nil {
		return nil, err
	}
	if o.index, err = index.Open(ctx, database, how.Options); err != nil {
		return nil, err
	}
	o.self = owner.Self(o.index.Instance(), database)
	options := storage.Options{Log: log, ReadOnly: how.readOnly, Keys: how.keys}
	if store != "" {
		o.claim = &owner.Claim{Store: bytes, Self: o.self, Policy: how.policy}
		options.MayWrite = o.claim.Check
	}
	if how.cache != nil {
		if err := o.lockDirectory("--storage-cache=", how.cache.Directory); err != nil {
			return nil, err
		}
		if o.cache, err = tiered.New(bytes, *how.cache); err != nil {
			return nil, fmt.Errorf("--storage-cache: %w", err)
		}
		bytes = o.cache
	}
	o.Storage = storage.New(o.index, bytes, options)
	if o.claim != nil {
		o.claim.IsMounted = func(ctx context.Context) error { return owner.IsComplete(ctx, o.Storage) }
	}
	return o, nil
}

// name returns the storage's name in messages, without the parameters that only open it; ""
// for none.
func (o *opened) name() string {
	if o.bytes == nil {
		return ""
	}
	return o.bytes.String()
}

func (o *opened) close() (err error) {
	if o.cache != nil {
		err = o.cache.Close()
	}
	if o.index != nil {
		err = errors.Join(err, o.index.Close())
	}
	if o.bytes != nil {
		err = errors.Join(err, o.bytes.Close())
	}
	for _, lock := range o.locks {
		err = errors.Join(err, lock.Close())
	}
	return err
}

// recordEnd records for the metrics of the server that a command has ended.
func recordEnd(ctx context.Context, store *opened, run indexmetrics.Run, log *slog.Logger) {
	if err := indexmetrics.Record(ctx, store.index, run); err != nil {
		log.Warn("can't record the end of the command for the metrics of the server", "error", err)
	}
}
