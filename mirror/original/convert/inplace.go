package convert

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"nar-herder/mirror/original"
)

// Needed reports whether [InPlace] has something to do, which may take long.
func Needed(ctx context.Context, database string) bool {
	if _, err := os.Stat(database); errors.Is(err, fs.ErrNotExist) {
		_, err := os.Stat(database + unfinished)
		return err == nil
	}
	source, err := original.Open(ctx, database)
	if err != nil {
		return false
	}
	_ = source.Close() // InPlace opens it again, and says what is wrong
	return true
}

// InPlace replaces a database of the original by an index of this program, and keeps the old
// file as DATABASE.original. It resumes an interrupted run. If the file is something else, or
// doesn't exist, it does nothing and returns false.
func InPlace(ctx context.Context, database string, o Options) (converted bool, err error) {
	log := o.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	// Rename the file itself, and not a link to it.
	path, err := filepath.EvalSymlinks(database)
	if errors.Is(err, fs.ErrNotExist) {
		return restore(ctx, database, log)
	}
	if err != nil {
		return false, nil
	}
	source, err := original.Open(ctx, path)
	if err != nil {
		return false, ctx.Err()
	}
	count, err := source.Count(ctx)
	if err := errors.Join(err, source.Close()); err != nil {
		return false, err
	}
	before, err := os.Stat(path)
	if err != nil {
		return false, err
	}
	log.Info("this is a database of the original Nar Herder: converting it. The old file is kept; if this is interrupted, the next start resumes it", "database", database, "narinfos", count)
	start := time.Now()
	result, err := toIndex(ctx, path, path+unfinished, o)
	if err != nil {
		return false, err
	}
	if now, err := os.Stat(path); err != nil || !os.SameFile(before, now) {
		return false, errors.Join(fmt.Errorf("database %s: %w", database, errMoved), err)
	}
	kept, err := replace(path+unfinished, path)
	if err != nil {
		return false, err
	}
	log.Info("converted the database of the original", "database", database, "kept", kept, "result", result.String(), "duration", time.Since(start).Round(time.Second))
	return true, nil
}

// restore finishes a replacement that was interrupted between its two renames.
func restore(ctx context.Context, database string, log *slog.Logger) (bool, error) {
	finished, err := isFinished(ctx, database+unfinished)
	if err != nil || !finished {
		return false, err
	}
	if err := putInPlace(database+unfinished, database); err != nil {
		return false, err
	}
	log.Info("put a finished conversion in place of the missing database", "database", database)
	return true, nil
}
