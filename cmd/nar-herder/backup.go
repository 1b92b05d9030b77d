package main

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"nar-herder/storage/index"
)

type backupCommand struct {
	databaseOption `embed:""`

	Replace bool `group:"work" argumentsonly:"" help:"Replace an existing file once the new backup is complete. A database that a server uses is never replaced."`

	File string `arg:"" name:"file" help:"File to write."`
}

// Help is shown below the options.
func (backupCommand) Help() string {
	return `The backup is a consistent snapshot of the whole database, with tags, pins and withdrawals, but without nars. The server may be running. The file appears when it is complete, checked by SQLite, and flushed to disk; after a failure, an older file is unchanged.

To restore a backup, stop the server, remove DATABASE-wal and DATABASE-shm, and copy the backup to DATABASE as the server's user. Files that were about to be deleted are then kept, and the grace period of withdrawn items starts again.`
}

func (c *backupCommand) Run(ctx context.Context, s *streams) (err error) {
	store, err := openForReading(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	wait := newWait(s.err, "backing up")
	err = store.index.Backup(ctx, c.File, c.Replace, time.Now())
	wait.end()
	if err != nil {
		return err
	}
	info, err := os.Stat(c.File)
	if err != nil {
		return err
	}
	printf(s.out, "backed up database %s to %s: %s\n", c.Database, c.File, byteCount(info.Size()))
	return nil
}

// logRestored logs that a backup was restored.
func logRestored(ctx context.Context, x *index.Index, log *slog.Logger) error {
	taken, err := x.Restored(ctx, time.Now())
	if err == nil && !taken.IsZero() {
		log.Warn("the database was restored from a backup: later changes are missing, and the grace period of withdrawn items starts again; run 'nar-herder check', and see docs/backup.md",
			"taken", taken.Format(time.RFC3339))
	}
	return err
}
