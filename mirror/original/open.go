package original

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	sqlite3 "modernc.org/sqlite/lib"
)

// busyTimeout is how long to wait for another process's transaction.
const busyTimeout = 5 * time.Second

// smallestDatabase is SQLite's smallest page, of which a database has at least
// one; see https://www.sqlite.org/fileformat.html.
const smallestDatabase = 512

// reading has the parameters of all connections that read. The file may be foreign: no code
// that its schema names may run.
var reading = []string{
	"_pragma=trusted_schema(off)",
	"_pragma=cell_size_check(on)",
	"_pragma=cache_size(-8192)",
}

// Open opens a database of the original for reading, including what a crash has left in its
// write-ahead log. It changes nothing, and doesn't disturb writers. Beside a database with a
// write-ahead log, SQLite may leave an empty one and its index, FILE-wal and FILE-shm. The
// error is [ErrNotDatabase], [ErrNotOriginal], or the system's.
func Open(ctx context.Context, path string) (*Database, error) {
	absolute, err := checkFile(path)
	if err != nil {
		return nil, err
	}
	conn, err := openReadOnly(ctx, absolute)
	if err != nil {
		return nil, describe("database "+path+": open it", err)
	}
	return newDatabase(ctx, path, conn)
}

// Look returns nil if a file is a database of the original that has no writers, or the error
// of [Open]. It leaves no file beside it.
func Look(ctx context.Context, path string) error {
	absolute, err := checkFile(path)
	if err != nil {
		return err
	}
	conn, err := tryReading(ctx, absolute, "mode=ro", "immutable=1")
	if err != nil {
		return describe("database "+path+": open it", err)
	}
	_, err = look(ctx, conn)
	return errors.Join(err, conn.close())
}

func newDatabase(ctx context.Context, path string, conn *connection) (*Database, error) {
	layout, err := look(ctx, conn)
	if err != nil {
		return nil, errors.Join(describe("database "+path, err), conn.close())
	}
	return &Database{path: path, layout: layout, conn: conn}, nil
}

// checkFile refuses files that are obviously not databases. The error is the system's or
// ErrNotDatabase.
func checkFile(path string) (absolute string, err error) {
	if absolute, err = filepath.Abs(path); err != nil {
		return "", fmt.Errorf("database %s: find its absolute path: %w", path, err)
	}
	info, err := os.Stat(absolute)
	if err != nil {
		return "", fmt.Errorf("database %s: %w", path, errors.Unwrap(err))
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%w: %s is not a regular file: name another", ErrNotDatabase, path)
	}
	if info.Size() < smallestDatabase {
		return "", fmt.Errorf("%w: %s has only %d bytes, a database has %d or more: name another", ErrNotDatabase, path, info.Size(), smallestDatabase)
	}
	return absolute, nil
}

func openReadOnly(ctx context.Context, path string) (*connection, error) {
	conn, err := tryReading(ctx, path, "mode=ro")
	if code := primaryCode(err); code != sqlite3.SQLITE_CANTOPEN && code != sqlite3.SQLITE_READONLY && code != sqlite3.SQLITE_IOERR {
		return conn, err
	}
	// A database with a write-ahead log needs files beside it, which can't be made in a
	// read-only directory. If there is no log, the database is not open elsewhere, and is
	// complete.
	if info, statErr := os.Stat(path + "-wal"); statErr == nil && info.Size() > 0 {
		return nil, fmt.Errorf("%w: its directory can't be written, and there is a log of changes %s-wal: copy both to a directory that can be written", err, path)
	} else if statErr != nil && !errors.Is(statErr, fs.ErrNotExist) {
		return nil, errors.Join(err, statErr)
	}
	return tryReading(ctx, path, "mode=ro", "immutable=1")
}

// tryReading opens a connection and reads something.
func tryReading(ctx context.Context, path string, parameters ...string) (*connection, error) {
	conn, err := connect(ctx, path, append(parameters, reading...)...)
	if err != nil {
		return nil, err
	}
	if _, err := conn.first(ctx, "SELECT count(*) FROM sqlite_schema"); err != nil {
		return nil, errors.Join(err, conn.close())
	}
	return conn, nil
}

// OpenLocked is [Open] with a lock against writers until the database is closed. The error is
// [ErrInUse] if another process has it open; an idle one is noticed only if the database has
// a write-ahead log. OpenLocked first moves what a crash has left in that log into the file.
// A read-only file can't be locked: it is read in one transaction.
func OpenLocked(ctx context.Context, path string) (*Database, error) {
	absolute, err := checkFile(path)
	if err != nil {
		return nil, err
	}
	conn, err := openForWriting(ctx, absolute)
	switch primaryCode(err) {
	case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN:
		if conn, err = openReadOnly(ctx, absolute); err == nil {
			if err = conn.script(ctx, "BEGIN"); err == nil {
				_, err = conn.first(ctx, "SELECT count(*) FROM sqlite_schema")
			}
			if err != nil {
				err = errors.Join(err, conn.close())
			}
		}
	}
	if err != nil {
		return nil, describe("database "+path+": lock it", err)
	}
	return newDatabase(ctx, path, conn)
}

// openForWriting opens a connection that can lock against writers.
func openForWriting(ctx context.Context, path string) (*connection, error) {
	// In exclusive mode, a transaction begins only if no other process has the log open.
	// That mode doesn't stay: another process that looks at the file would wait.
	conn, err := tryReading(ctx, path, "mode=rw", "_pragma=locking_mode(exclusive)")
	if err != nil {
		return nil, err
	}
	if _, err = conn.first(ctx, "PRAGMA wal_checkpoint(truncate)"); err == nil {
		err = conn.script(ctx, "BEGIN EXCLUSIVE; ROLLBACK")
	}
	if err := errors.Join(err, conn.close()); err != nil {
		return nil, err
	}
	if conn, err = tryReading(ctx, path, "mode=rw"); err != nil {
		return nil, err
	}
	if err := conn.script(ctx, "BEGIN IMMEDIATE"); err != nil {
		return nil, errors.Join(err, conn.close())
	}
	return conn, nil
}
