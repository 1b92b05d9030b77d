package main

import (
	"context"

	"nar-herder/storage/index"
)

type migrateCommand struct {
	databaseOption `embed:""`
}

// Help is shown below the options.
func (migrateCommand) Help() string {
	return `Only this command and run-server change the schema of a database; other commands refuse a database with another schema version. If the server is of the older version, stop it first.

First the old database is copied to DATABASE.schema-N, where N is its schema version. That takes the time and space of a file copy. To return to the older version of the program, stop the server, remove DATABASE-wal and DATABASE-shm if they exist, and rename the copy to DATABASE. Items imported since then are lost. Remove the copy when you no longer need it.`
}

func (c *migrateCommand) Run(ctx context.Context, s *streams) error {
	if err := index.CheckLog(c.Database); err != nil {
		return err
	}
	wait := newWait(s.err, "migrating")
	done, err := index.Migrate(ctx, c.Database)
	wait.end()
	if err != nil {
		return err
	}
	if done.From == done.To {
		printf(s.out, "%s is up to date: it has schema version %d\n", c.Database, done.To)
		return nil
	}
	printf(s.out, "migrated %s from schema version %d to %d; the old database is kept as %s\n", c.Database, done.From, done.To, done.Copy)
	return nil
}
