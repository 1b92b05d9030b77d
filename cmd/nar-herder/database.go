package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/tiered"
)

// databaseOption is what all commands that use the index have.
type databaseOption struct {
	Database string `default:"/var/lib/nar-herder/nar_herder.db" placeholder:"FILE" help:"The SQLite index (default: ${default})."`
}

// opened is an index with its storage, to be closed together.
type opened struct {
	*storage.Storage
	index *index.Index
	bytes *directory.Directory
	cache *tiered.Tiered // in front of bytes; nil without one
}

// open opens the index, and the storage unless its name is empty.
func open(ctx context.Context, database, store string, options index.Options, log *slog.Logger) (*opened, error) {
	return openWithCache(ctx, database, store, nil, options, log)
}

// openWithCache is open for the server, which alone may use the cache of the storage;
// nil for none.
func openWithCache(ctx context.Context, database, store string, cache *tiered.Options, options index.Options, log *slog.Logger) (_ *opened, err error) {
	o := new(opened)
	var bytes storage.ByteStore // nil unlike a nil *directory.Directory
	if store != "" {
		if strings.HasPrefix(store, "s3://") {
			return nil, errors.New("--storage=" + store + ": storing on S3 is not built yet: name a directory")
		}
		if o.bytes, err = directory.Open(store); err != nil {
			return nil, err
		}
		bytes = o.bytes
	}
	if cache != nil {
		if o.cache, err = tiered.New(bytes, *cache); err != nil {
			return nil, errors.Join(fmt.Errorf("--storage-cache: %w", err), o.closeBytes())
		}
		bytes = o.cache
	}
	if o.index, err = index.Open(ctx, database, options); err != nil {
		return nil, errors.Join(err, o.closeBytes())
	}
	o.Storage = storage.New(o.index, bytes, storage.Options{Log: log})
	if err := o.Remember(ctx); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *opened) close() error {
	return errors.Join(o.index.Close(), o.closeBytes())
}

func (o *opened) closeBytes() (err error) {
	if o.cache != nil {
		err = o.cache.Close()
	}
	if o.bytes != nil {
		err = errors.Join(err, o.bytes.Close())
	}
	return err
}
