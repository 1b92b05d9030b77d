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
	return "Each database has a random id, which identifies its instance. A copy of a database has the same id. To use both, stop the server of the copy and run this command on it. The copy then owns no storage. If the database was only moved, run 'nar-herder claim-storage' instead."
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
	printf(s.out, "database %s now has the id %s; before, it had %s\n", c.Database, store.Instance(), before)
	return nil
}
