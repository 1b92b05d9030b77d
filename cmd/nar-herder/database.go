package main

import (
	"context"
	"errors"
	"log/slog"
	"strings"

	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
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
}

// open opens the index, and the storage unless its name is empty.
func open(ctx context.Context, database, store string, options index.Options, log *slog.Logger) (_ *opened, err error) {
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
	if o.index, err = index.Open(ctx, database, options); err != nil {
		if o.bytes != nil {
			err = errors.Join(err, o.bytes.Close())
		}
		return nil, err
	}
	o.Storage = storage.New(o.index, bytes, storage.Options{Log: log})
	if err := o.Remember(ctx); err != nil {
		return nil, errors.Join(err, o.close())
	}
	return o, nil
}

func (o *opened) close() error {
	err := o.index.Close()
	if o.bytes != nil {
		err = errors.Join(err, o.bytes.Close())
	}
	return err
}
