package main

import (
	"context"
	"errors"
	"log/slog"
)

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
