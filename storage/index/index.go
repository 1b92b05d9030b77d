// Package index keeps the narinfos in an SQLite database: for each item its narinfo, its
// references in both directions, its tags, and which of its files are in the storage.
//
// Readers use a small pool of connections with prepared statements, and never write. Writes
// use the single writer connection, in transactions of whole batches. Several processes may
// write to one database.
package index

import (
	"cmp"
	"context"
	"crypto/rand"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/disk"
	"nar-herder/narinfo"
)

// Errors that callers distinguish. Each is wrapped in an error that names the database and
// the next step.
var (
	// ErrNotFound means that the index definitely has no such item.
	ErrNotFound = errors.New("not in the index")
	// ErrOriginal means that the file is a database of the original Nar Herder.
	ErrOriginal = errors.New("database of the original Nar Herder")
	// ErrNewerVersion means that a newer version of this program wrote the database.
	ErrNewerVersion = errors.New("database of a newer version")
	// ErrOlderVersion means that the database needs [Migrate].
	ErrOlderVersion = errors.New("database of an older version")
	// ErrForeign means that the file is neither an index nor an empty database.
	ErrForeign = errors.New("not a Nar Herder database")
	// ErrReadOnly means that this process can't write to the database file or its
	// directory.
	ErrReadOnly = errors.New("database can't be written")
	// ErrFull means that the file system of the database is full.
	ErrFull = errors.New("no space left for the database")
)

// Access is how [Open] uses a database.
type Access int

const (
	// Create opens a database for reading and writing. It initializes a missing or empty
	// file.
	Create Access = iota
	// Write opens an existing database for reading and writing.
	Write
	// Read opens an existing database for reading. It changes no file and needs no
	// permission to write. The same process must not have the database open for writing.
	Read
)

// Options of [Open]. The zero value suits a server.
type Options struct {
	Access Access
	// Migrate updates a database of an older version in place, without a copy. It is for
	// files that this program makes for itself; for others, use the function [Migrate].
	Migrate bool
	// WriterCache is the page cache of the writer connection in bytes, 4 MiB by default. A
	// larger cache speeds up large imports.
	WriterCache int64
	// Bulk is for large imports. It lets the write-ahead log grow longer between
	// checkpoints, so that a page that many transactions change is written to the database
	// once.
	Bulk bool
	// ReadWhenFull opens an existing database for reading if its file system is too full to
	// open it for writing; see [Index.Resume].
	ReadWhenFull bool
	// ReaderCache is the page cache of all readers together in bytes, 32 MiB by default.
	ReaderCache int64
}

const (
	defaultWriterCache = 4 << 20
	// defaultReaderCache holds the inner pages of tables with ten million items. The
	// operating system caches the leaves.
	defaultReaderCache = 32 << 20

	// pageSize is the page size of a new database in bytes. A narinfo takes a little over 1
	// KiB: pages larger than SQLite's default of 4 KiB waste less space.
	pageSize = 8 << 10

	// checkpointBytes and bulkCheckpointBytes are the sizes of the write-ahead log that
	// trigger a checkpoint, unless the reserve is too small for them.
	checkpointBytes     = 16 << 20
	bulkCheckpointBytes = 64 << 20
)

// Index is an open database. Its methods are safe for concurrent use.
type Index struct {
	path     string
	file     string // path without symbolic links; the log is beside it
	source   string // data source of a reader
	readers  *pool
	codec    *codec
	instance string
	reserve  int64 // its intended size in bytes; 0 with [Read]
	damages  damages

	// writing is a semaphore for the writer. Transactions of this process queue here,
	// because SQLite's lock is not fair and waiting for it means polling.
	writing chan struct{}
	writer  *connection // nil with [Read]

	full    atomic.Bool  // see IsFull
	removed atomic.Int64 // see Removed

	// changed reports whether another process has changed the file since it was opened; see
	// reading.go. It is nil for connections that take locks.
	changed func() error
}

// Open opens the database at path. It refuses a database of another schema version with
// [ErrOlderVersion] or [ErrNewerVersion]. Its errors name the file.
func Open(ctx context.Context, path string, options Options) (*Index, error) {
	x, err := open(ctx, path, options, migrations)
	if errors.Is(err, ErrFull) {
		// Removals need an open database, and opening it takes a few pages.
		if released, releaseErr := releaseReserve(resolve(path)); released {
			x, err = open(ctx, path, options, migrations)
		} else if releaseErr != nil {
			err = errors.Join(err, releaseErr)
		}
	}
	if errors.Is(err, ErrFull) && options.ReadWhenFull {
		if full, fullErr := openFull(ctx, path, options); fullErr == nil {
			return full, nil
		}
	}
	return x, err
}

func open(ctx context.Context, path string, options Options, steps []string) (_ *Index, err error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("database %s: find its absolute path: %w", path, err)
	}
	if err := prepareFile(absolute, options.Access); err != nil {
		return nil, err
	}
	count := max(4, 2*runtime.GOMAXPROCS(0))
	readerCache := cmp.Or(options.ReaderCache, defaultReaderCache) / int64(count)
	x := &Index{path: path, file: resolve(absolute), writing: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.Close())
		}
	}()
	if options.Access == Read {
		if err := x.openForReading(ctx, absolute, readerCache, count, len(steps)); err != nil {
			return nil, err
		}
		return x, nil
	}
	x.source = dataSource(absolute, readerCache, "_query_only=on")
	_, size, err := disk.Room(x.Directory())
	if err != nil {
		return nil, err
	}
	x.reserve = reserveSize(size)
	log := int64(checkpointBytes)
	if options.Bulk {
		log = bulkCheckpointBytes
	}
	version, err := recogniseFile(ctx, absolute, path, len(steps))
	if err != nil {
		return nil, err
	}
	if err := options.accepts(path, version, len(steps)); err != nil {
		return nil, err
	}
	missing := missingLog(x.file) // after recogniseFile: closing its connection may remove the log
	x.writer, err = connect(ctx, dataSource(absolute, cmp.Or(options.WriterCache, defaultWriterCache), fmt.Sprintf("_pragma=wal_autocheckpoint(%d)", x.maxLog(log)/pageSize)))
	if err != nil {
		return nil, describe(fmt.Sprintf("database %s: open it", path), err)
	}
	shareLog(missing)
	if err := migrate(ctx, x.writer, path, options, steps); err != nil {
		return nil, err
	}
	if x.codec, err = openCodec(x.writer, true); err != nil {
		return nil, describe(fmt.Sprintf("database %s: load its dictionaries", path), err)
	}
	for range x.codec.damaged {
		x.damages.add()
	}
	if x.instance, err = openInstance(x.writer, true); err != nil {
		return nil, describe(fmt.Sprintf("database %s: read its instance name", path), err)
	}
	if x.readers, err = openPool(ctx, x.source, count); err != nil {
		return nil, describe(fmt.Sprintf("database %s: open it for reading", path), err)
	}
	return x, nil
}

// accepts checks that Open may use or migrate a database of this schema version.
func (o *Options) accepts(path string, version, newest int) error {
	switch {
	case version == newest, version == 0 && o.Access == Create, version > 0 && o.Migrate:
		return nil
	case version == 0:
		return fmt.Errorf("%w: %s has no tables: name the index that the server uses with --database", ErrForeign, path)
	}
	return fmt.Errorf("%w: %s has schema version %d, this program uses %d: restart the server with this version of the program, or run 'nar-herder migrate --database=%[2]s'; both keep a copy of the old database",
		ErrOlderVersion, path, version, newest)
}

// recogniseFile calls refuseForeign again if another process replaces the file meanwhile,
// as the conversion of an original database does: SQLite may then have read the old file
// with the new file's log.
func recogniseFile(ctx context.Context, absolute, path string, newest int) (version int, err error) {
	for {
		before, err := os.Stat(absolute)
		if err != nil {
			return 0, err
		}
		version, refused := refuseForeign(ctx, absolute, path, newest)
		if refused == nil {
			return version, nil
		}
		if after, err := os.Stat(absolute); err != nil || os.SameFile(before, after) {
			return 0, refused
		}
	}
}

// refuseForeign checks the file before any pragma changes it: the journal mode is stored in
// the file, and the file may belong to another program.
func refuseForeign(ctx context.Context, absolute, path string, newest int) (version int, err error) {
	conn, err := connect(ctx, fileName(absolute)+"?_query_only=on")
	if err != nil {
		return 0, describe(fmt.Sprintf("database %s: open it", path), err)
	}
	version, err = recognise(conn, path, newest)
	return version, errors.Join(err, conn.close())
}

// smallestDatabase is the smallest page size of SQLite. A database has at least one page;
// see https://www.sqlite.org/fileformat.html.
const smallestDatabase = 512

// prepareFile refuses a file that can't be a database, and creates a missing one. If the
// group may write to the directory, it may also write to the database: imports often run as
// another user.
//
// It does not open an existing file. Closing it would drop the POSIX locks that other
// connections of this process hold.
func prepareFile(path string, access Access) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && access != Create {
		return fmt.Errorf("database %s: %w: name the index that the server uses with --database", path, fs.ErrNotExist)
	}
	if errors.Is(err, fs.ErrNotExist) {
		var file *os.File
		if file, err = disk.OpenFile(path, os.O_RDWR|os.O_EXCL, 0o664, disk.GroupWrites); err == nil {
			return file.Close()
		}
		if errors.Is(err, fs.ErrExist) {
			return nil // another process created it
		}
	} else if err == nil {
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%w: %s is not a regular file: name another file with --database", ErrForeign, path)
		}
		size := info.Size()
		if size == 0 && access != Create {
			return fmt.Errorf("%w: %s is empty: name the index that the server uses with --database", ErrForeign, path)
		}
		if size > 0 && size < smallestDatabase {
			// SQLite would treat it as an empty database, and overwrite it.
			return fmt.Errorf("%w: %s has only %d bytes, a database has %d or more: name another file with --database", ErrForeign, path, size, smallestDatabase)
		}
		if access == Read {
			return nil // opening it reports other errors
		}
		disk.Inherit(resolve(path), disk.GroupWrites)
		err = MayWrite(path)
	}
	var pathError *fs.PathError
	if errors.As(err, &pathError) {
		err = pathError.Err
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("database %s: its directory %s does not exist: create it, or name another file with --database", path, filepath.Dir(path))
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %s: %w", ErrReadOnly, path, cmp.Or(MayWrite(path), err))
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %s: %w: let the user or group of this process write the file and its directory", ErrReadOnly, path, err)
	}
	return fmt.Errorf("database %s: %w", path, err)
}

// MayWrite returns an error, with advice, unless this process may write to a database and
// to the files that SQLite keeps beside it. Its directory must be writable unless the log
// exists.
func MayWrite(path string) error {
	path = resolve(path)
	names := []string{path, path + "-wal", path + "-shm"}
	for _, name := range names {
		if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
			names = append([]string{filepath.Dir(path)}, names...)
			break
		}
	}
	if err := disk.Unwritable(names...); err == nil {
		return nil
	}
	// A server also writes these, but can start without them.
	return disk.Unwritable(append(names, path+reserveSuffix, path+".lock")...)
}

// missingLog returns the log files that do not exist yet, for shareLog.
func missingLog(path string) (missing []string) {
	for _, name := range []string{path + "-wal", path + "-shm"} {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, name)
		}
	}
	return missing
}

// shareLog gives new log files the group of their directory. SQLite copies the mode of the
// database, but its owner and group only if root creates the files.
func shareLog(names []string) {
	for _, name := range names {
		disk.Inherit(name, disk.GroupWrites)
	}
}

// dataSource returns the name of the database for the driver. It contains all pragmas, so
// that every connection of a pool has them.
func dataSource(path string, cacheBytes int64, extra ...string) string {
	parameters := append([]string{
		"_pragma=page_size(" + strconv.Itoa(pageSize) + ")",
		"_foreign_keys=on",
		"_journal_mode=wal",
		// A finished import has moved nars out of their directory, so a power failure must
		// not lose its rows.
		"_synchronous=full",
		"_pragma=cache_size(-" + strconv.FormatInt(max(cacheBytes/1024, 64), 10) + ")",
		"_pragma=journal_size_limit(67108864)",
		"_pragma=wal_autocheckpoint(" + strconv.Itoa(checkpointBytes/pageSize) + ")",
		"_pragma=temp_store(memory)",
	}, extra...)
	return fileName(path) + "?" + strings.Join(parameters, "&")
}

// fileName returns the absolute path as a URI, which can have parameters.
func fileName(path string) string { return "file:" + (&url.URL{Path: path}).EscapedPath() }

// openInstance returns the random id of this database, which identifies the instance behind
// any URL. If there is none, make creates it; without make, the id is "".
func openInstance(conn *connection, make bool) (string, error) {
	row, err := conn.first("SELECT value FROM settings WHERE key = 'instance'")
	if err != nil || row == nil && !make {
		return "", err
	}
	if row == nil {
		// If two processes insert a row, the first one wins.
		row, err = conn.first(`INSERT INTO settings VALUES ('instance', ?)
			ON CONFLICT DO UPDATE SET value = value RETURNING value`, rand.Text())
		if err != nil {
			return "", err
		}
	}
	return textValue(row[0])
}

// Instance returns the random id of this database. It is "" for a database that was opened
// with [Read] and has no id yet, such as a copy.
func (x *Index) Instance() string { return x.instance }

// NewInstance gives this database a new random id, after it was copied from an instance
// that keeps its own. No other process may use the database meanwhile.
func (x *Index) NewInstance(ctx context.Context) error {
	name := rand.Text()
	err := x.Update(ctx, func(tx *Tx) error { return tx.SetSetting("instance", name) })
	if err == nil {
		x.instance = name
	}
	return err
}

// Removed returns how many items this process has removed.
func (x *Index) Removed() int64 { return x.removed.Load() }

// Sizes returns the sizes of the database file and of its write-ahead log.
func (x *Index) Sizes() (database, log int64, err error) {
	info, err := os.Stat(x.file)
	if err != nil {
		return 0, 0, err
	}
	switch wal, err := os.Stat(x.file + "-wal"); {
	case err == nil:
		log = wal.Size()
	case !errors.Is(err, fs.ErrNotExist):
		return 0, 0, err
	}
	return info.Size(), log, nil
}

// Path returns the file name that was passed to [Open].
func (x *Index) Path() string { return x.path }

// Directory returns the directory of the database and its log.
func (x *Index) Directory() string { return filepath.Dir(x.file) }

// resolve follows symbolic links, as SQLite does.
func resolve(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

// Close closes all connections. It must not run concurrently with other methods. The error
// may be [ErrChanged], with [Read].
func (x *Index) Close() error {
	err := x.readers.close()
	if x.changed != nil {
		err = errors.Join(err, x.changed())
	}
	if x.writer != nil {
		err = errors.Join(err, x.writer.close())
	}
	if x.codec != nil {
		x.codec.close()
	}
	return err
}

// describe wraps an error of SQLite in an error of this package that names the operation.
func describe(tried string, err error) error {
	var failure *sqlite.Error
	if errors.As(err, &failure) {
		code := failure.Code() & 0xff
		if failure.Code() == sqlite3.SQLITE_IOERR_SHMSIZE {
			code = sqlite3.SQLITE_FULL // no room for the -shm file
		}
		switch code {
		case sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%w: %s: the file is not an SQLite database: name another file with --database", ErrForeign, tried)
		case sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN:
			return fmt.Errorf("%w: %s: %w: let the user or group of this process write the file and its directory", ErrReadOnly, tried, err)
		case sqlite3.SQLITE_FULL:
			return fmt.Errorf("%w: %s: %w: nothing of this step was kept; free some space and try again", ErrFull, tried, err)
		case sqlite3.SQLITE_CORRUPT:
			return fmt.Errorf("%s: %w: the database is damaged: restore a copy of it, or build a new one with 'nar-herder import'", tried, err)
		case sqlite3.SQLITE_BUSY:
			return fmt.Errorf("%s: %w: another process has held the database for over %d s", tried, err, int(lockTimeout.Seconds()))
		}
	}
	return fmt.Errorf("%s: %w", tried, err)
}

// Tag is a key and a value that an administrator assigns to items.
type Tag struct{ Key, Value string }

func (t Tag) String() string { return t.Key + "=" + t.Value }

// keyOf returns the key of an item in the database: the first eight bytes of its path hash.
// References can be written without a look-up. Ten million paths contain a collision with a
// probability of 1 in 300,000; the index then refuses the second item with an error.
func keyOf(hash narinfo.PathHash) int64 {
	return int64(binary.BigEndian.Uint64(hash[:8]))
}

// hashOf converts a column to a path hash. The column is NULL only in a damaged database,
// if the narinfo of an item is missing.
func hashOf(column driver.Value) (hash narinfo.PathHash, err error) {
	if n := copy(hash[:], blob(column)); n != len(hash) {
		return hash, fmt.Errorf("%w: a path hash has %d bytes, want %d", ErrDamaged, n, len(hash))
	}
	return hash, nil
}
