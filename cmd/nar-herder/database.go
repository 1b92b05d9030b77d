package main

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	bytes openedBytes // nil without a storage
}

// openedBytes is a byte store, to be closed by who has opened it.
type openedBytes interface {
	storage.ByteStore
	io.Closer
}

// openBytes opens a byte store by what an option names it.
func openBytes(_ context.Context, name string) (openedBytes, error) {
	if strings.HasPrefix(name, "s3://") {
		return nil, fmt.Errorf("%s: storing on S3 is not built yet: name a directory", name)
	}
	bytes, err := directory.Open(name)
	if err != nil {
		return nil, err // and no interface with nil in it
	}
	return bytes, nil
}

// open opens the index, and the storage unless its name is empty.
func open(ctx context.Context, database, store string, options index.Options, log *slog.Logger) (_ *opened, err error) {
	o := new(opened)
	if store != "" {
		if o.bytes, err = openBytes(ctx, store); err != nil {
			return nil, err
		}
	}
	if o.index, err = index.Open(ctx, database, options); err != nil {
		if o.bytes != nil {
			err = errors.Join(err, o.bytes.Close())
		}
		return nil, err
	}
	o.Storage = storage.New(o.index, o.bytes, storage.Options{Log: log})
	return o, nil
}

func (o *opened) close() error {
	err := o.index.Close()
	if o.bytes != nil {
		err = errors.Join(err, o.bytes.Close())
	}
	return err
}
