package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"nar-herder/mirror"
	"nar-herder/mirror/dump"
	"nar-herder/mirror/health"
)

// dumpOption is the option of run-server and dump.
type dumpOption struct {
	DatabaseDump string `group:"dumps" placeholder:"FILE" help:"Dump of the index for other instances to download. Names of further files begin with this one (default: NAME_dump.db beside --database=NAME.db)."`
}

// path returns the path of the dump, by default beside the database.
func (o dumpOption) path(database string) string {
	return cmp.Or(o.DatabaseDump, besideDatabase(database, dumpSuffix))
}

// besideDatabase returns a default path beside the database, as in the original.
func besideDatabase(database, suffix string) string {
	return strings.TrimSuffix(database, filepath.Ext(database)) + suffix
}

// newDumps returns the maker of dumps. follower is nil unless an instance is mirrored.
func (c *serverCommand) newDumps(store *opened, follower *mirror.Mirror, log *slog.Logger) (*dump.Maker, error) {
	path := c.path(c.Database)
	maker, err := dump.New(store.index, dump.Options{
		Path: path, Interval: time.Duration(c.DatabaseDumpInterval), Log: log,
		Ready: func() bool { return follower == nil || follower.Status().State != health.Syncing },
	})
	if err != nil {
		return nil, err
	}
	return maker, store.lockDump(path)
}

// dumpSuffix ends the default name of dumps.
const dumpSuffix = "_dump.db"

type dumpCommand struct {
	databaseOption `embed:""`
	dumpOption     `embed:""`
}

// Help is shown below the options.
func (dumpCommand) Help() string {
	return "This command may run beside the server, which then serves the new dump. A dump is a consistent snapshot, and does not block writers. If it fails, the previous dump stays."
}

func (c *dumpCommand) Run(ctx context.Context, s *streams) (err error) {
	c.DatabaseDump = c.path(c.Database)
	store, err := openExisting(ctx, c.Database, "", nil)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.close()) }()
	maker, err := dump.New(store.index, dump.Options{Path: c.DatabaseDump})
	if err != nil {
		return err
	}
	if err := store.lockDump(c.DatabaseDump); err != nil {
		return err
	}
	wait := newWait(s.err, "making the dump")
	made, err := maker.Make(ctx)
	wait.end()
	if ctx.Err() != nil {
		return errors.Join(errors.New("interrupted: the previous dump stays"), maker.Tidy())
	}
	if err != nil {
		return err
	}
	printf(s.out, "%s, up to change %d: %s in %s, compressed %s, as an index %s\n", countOf(int(made.Items), "item"), made.LastChange,
		byteCount(made.Database.Size), c.DatabaseDump, byteCount(made.Zstd.Size), byteCount(made.Index.Size))
	if made.Damaged > 0 {
		return fmt.Errorf("the dump lacks %s: run 'nar-herder check'", countOf(int(made.Damaged), "damaged item"))
	}
	return nil
}
