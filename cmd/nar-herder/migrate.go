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
	return `Only this command and run-server change the schema of a database; other commands refuse one of another version. Stop the server first if it is of the older version.

Before anything is changed, the old database is copied to DATABASE.schema-N beside it, where N is its schema version. That takes about as long as copying the file, and as much room. To go back to the older version of the program, stop the server, remove DATABASE-wal and DATABASE-shm if they are there, and rename the copy to DATABASE; what was imported since is missing then. Remove the copy when it is no longer needed.`
}

func (c *migrateCommand) Run(ctx context.Context, s *streams) error {
	if err := index.CheckLog(c.Database); err != nil {
		return err
	}
	done, err := index.Migrate(ctx, c.Database)
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
