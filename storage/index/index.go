// Package index keeps the narinfos: a SQLite database that knows, for each
// item, its narinfo text, its references both ways, its tags, and which of its
// files are in the storage.
//
// Reading takes prepared statements on a small pool of connections and never
// writes. Writing takes the one writer connection, in transactions of whole
// batches, beside other processes that do the same.
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

// Errors that callers tell apart. Each comes wrapped in one that names the
// database and what to do.
var (
	// ErrNotFound says that the index certainly has no such item.
	ErrNotFound = errors.New("not in the index")
	// ErrOriginal says that the file is a database of the original Nar Herder.
	ErrOriginal = errors.New("database of the original Nar Herder")
	// ErrNewerVersion says that the database was written by a newer version.
	ErrNewerVersion = errors.New("database of a newer version")
	// ErrOlderVersion says that [Migrate] has not brought the database up to date
	// yet.
	ErrOlderVersion = errors.New("database of an older version")
	// ErrForeign says that the file is no index, and not an empty database.
	ErrForeign = errors.New("not a Nar Herder database")
	// ErrReadOnly says that the database file or its directory can't be written.
	ErrReadOnly = errors.New("database can't be written")
	// ErrFull says that the disk under the database is full.
	ErrFull = errors.New("no space left for the database")
)

// Access is what [Open] may do to a database.
type Access int

const (
	// Create opens a database for writing, and makes one of a file that is missing
	// or empty.
	Create Access = iota
	// Write opens a database for writing. It must exist.
	Write
	// Read opens a database for reading. It must exist. Nothing is changed in it or
	// beside it, and no permission to write is needed. The process must not have
	// the database open for writing as well.
	Read
)

// Options of [Open]; the zero value is good for a server.
type Options struct {
	Access Access
	// Migrate brings a database of an older version up to date in place. It is for
	// files that this program makes and nobody else needs; see [Migrate] for others.
	Migrate bool
	// WriterCache is the page cache of the writer connection, in bytes;
	// 0 means 4 MiB. A large import is faster with more.
	WriterCache int64
	// Bulk is for writing very much: the database's log may grow longer before
	// it is folded back, so that a page that many transactions touch is
	// written once.
	Bulk bool
	// ReadWhenFull opens an existing database for reading, where it can't be opened for
	// writing as its file system is full; see [Index.Resume].
	ReadWhenFull bool
	// ReaderCache is the page cache of all readers together, in bytes;
	// 0 means 32 MiB.
	ReaderCache int64
}

const (
	defaultWriterCache = 4 << 20
	// defaultReaderCache holds the inner pages of tables with ten million
	// items; leaves come from the operating system's cache.
	defaultReaderCache = 32 << 20

	// pageSize is the database's, in bytes, set when it is made. A narinfo
	// takes a good kilobyte: in larger pages than SQLite's usual 4 KiB fewer
	// of them leave a part of the page empty.
	pageSize = 8 << 10

	// checkpointBytes and bulkCheckpointBytes are how long the write-ahead log
	// gets before it is folded back, where that is not too long for the reserve.
	checkpointBytes     = 16 << 20
	bulkCheckpointBytes = 64 << 20
)

// Index is an open database. Its methods may be called from several
// goroutines at once.
type Index struct {
	path     string
	file     string // path without symbolic links, beside which the log lies
	source   string // of a connection for reading
	readers  pool
	codec    *codec
	instance string
	reserve  int64 // how large it is to be, in bytes; 0 with [Read]
	damages  damages

	// writing has something in it while the writer is in use. It lets the
	// transactions of this process take turns before they meet SQLite's lock, which
	// is not fair and is waited for by polling.
	writing chan struct{}
	writer  *connection // nil with [Read]

	full atomic.Bool // see IsFull

	// changed says whether what was read may be of two moments; see reading.go. It
	// is nil where that can't be.
	changed func() error
}

// Open opens the database at path. A database of another schema version is refused,
// with [ErrOlderVersion] or [ErrNewerVersion]. The errors are those named in this
// package, or the system's, and say which file they are about.
func Open(ctx context.Context, path string, options Options) (*Index, error) {
	x, err := open(ctx, path, options, migrations)
	if errors.Is(err, ErrFull) {
		// Removals need an open database, which needs a few pages of its own.
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
	missing := missingLog(x.file) // after the connection of recogniseFile, which removes a log as the last one
	x.writer, err = connect(ctx, dataSource(absolute, cmp.Or(options.WriterCache, defaultWriterCache), fmt.Sprintf("_pragma=wal_autocheckpoint(%d)", x.longestLog(log)/pageSize)))
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

// accepts refuses a schema version that Open may not use, or bring up to date.
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

// recogniseFile is refuseForeign for a file that may be replaced meanwhile, as a
// database of the original is when it has been converted. Then what was seen may
// be the old file with the new one's log.
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

// refuseForeign looks at what the file is before anything is set on it: the
// journal mode stays with a database, also with a stranger's.
func refuseForeign(ctx context.Context, absolute, path string, newest int) (version int, err error) {
	conn, err := connect(ctx, fileName(absolute)+"?_query_only=on")
	if err != nil {
		return 0, describe(fmt.Sprintf("database %s: open it", path), err)
	}
	version, err = recognise(conn, path, newest)
	return version, errors.Join(err, conn.close())
}

// smallestDatabase is SQLite's smallest page, of which a database has at least
// one; see https://www.sqlite.org/fileformat.html.
const smallestDatabase = 512

// prepareFile refuses what can't be a database, and creates an empty file for a
// new one. Where the group may write to its directory, it may write to the database as
// well, also to one that was copied there: imports often run as another user.
//
// An existing file is not opened: closing it would drop the locks that other
// connections of this process hold on it, as POSIX has it.
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
			return nil // another process was first
		}
	} else if err == nil {
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%w: %s is no regular file: name another file with --database", ErrForeign, path)
		}
		size := info.Size()
		if size == 0 && access != Create {
			return fmt.Errorf("%w: %s is empty: name the index that the server uses with --database", ErrForeign, path)
		}
		if size > 0 && size < smallestDatabase {
			// SQLite would take it for an empty database, and write over it.
			return fmt.Errorf("%w: %s has only %d bytes, a database has %d or more: name another file with --database", ErrForeign, path, size, smallestDatabase)
		}
		if access == Read {
			return nil // whether it can be read, opening it tells
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

// MayWrite returns an error, with advice, if this user may not write a database, or what
// SQLite has beside it. Its directory must be writable unless the log is there.
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
	// A server needs these as well, and may start without.
	return disk.Unwritable(append(names, path+reserveSuffix, path+".lock")...)
}

// missingLog returns the files of the log that do not exist yet, for shareLog.
func missingLog(path string) (missing []string) {
	for _, name := range []string{path + "-wal", path + "-shm"} {
		if _, err := os.Lstat(name); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, name)
		}
	}
	return missing
}

// shareLog gives files of the log that SQLite has just made the group of their directory.
// SQLite gives them the mode of the database, but its owner and group only when root makes
// them.
func shareLog(names []string) {
	for _, name := range names {
		disk.Inherit(name, disk.GroupWrites)
	}
}

// dataSource is the name of the database for the driver. All pragmas are in
// it, so that every connection of a pool has them.
func dataSource(path string, cacheBytes int64, extra ...string) string {
	parameters := append([]string{
		"_pragma=page_size(" + strconv.Itoa(pageSize) + ")",
		"_foreign_keys=on",
		"_journal_mode=wal",
		// A finished import has moved nars out of the directory they came
		// from; its rows must not be lost with the power.
		"_synchronous=full",
		"_pragma=cache_size(-" + strconv.FormatInt(max(cacheBytes/1024, 64), 10) + ")",
		"_pragma=journal_size_limit(67108864)",
		"_pragma=wal_autocheckpoint(" + strconv.Itoa(checkpointBytes/pageSize) + ")",
		"_pragma=temp_store(memory)",
	}, extra...)
	return fileName(path) + "?" + strings.Join(parameters, "&")
}

// fileName is the absolute path in the form that takes parameters.
func fileName(path string) string { return "file:" + (&url.URL{Path: path}).EscapedPath() }

// openInstance returns the random name of this database, made once: it tells
// an instance from others, and from itself behind another URL.
// Without make, it is "" where there is none.
func openInstance(conn *connection, make bool) (string, error) {
	row, err := conn.first("SELECT value FROM settings WHERE key = 'instance'")
	if err != nil || row == nil && !make {
		return "", err
	}
	if row == nil {
		// Two processes may both be first: the row of one of them stays.
		row, err = conn.first(`INSERT INTO settings VALUES ('instance', ?)
			ON CONFLICT DO UPDATE SET value = value RETURNING value`, rand.Text())
		if err != nil {
			return "", err
		}
	}
	return textValue(row[0])
}

// Instance is the random name of this database. With [Read], it is "" for one that
// has none yet, such as a copy.
func (x *Index) Instance() string { return x.instance }

// NewInstance gives this database another random name, as it is a copy of the database of
// an instance that keeps its own. No other process may use it meanwhile.
func (x *Index) NewInstance(ctx context.Context) error {
	name := rand.Text()
	err := x.Update(ctx, func(tx *Tx) error { return tx.SetSetting("instance", name) })
	if err == nil {
		x.instance = name
	}
	return err
}

// Path is the file name the index was opened with.
func (x *Index) Path() string { return x.path }

// Directory is where the database lies, with its log.
func (x *Index) Directory() string { return filepath.Dir(x.file) }

// resolve follows symbolic links, as SQLite does.
func resolve(path string) string {
	if resolved, err := filepath.EvalSymlinks(path); err == nil {
		return resolved
	}
	return path
}

// Close ends all connections. No other method may be in flight. The error may be
// [ErrChanged], with [Read].
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

// describe wraps an error of SQLite with what was tried, and with the error of
// this package that callers look for.
func describe(tried string, err error) error {
	var failure *sqlite.Error
	if errors.As(err, &failure) {
		code := failure.Code() & 0xff
		if failure.Code() == sqlite3.SQLITE_IOERR_SHMSIZE {
			code = sqlite3.SQLITE_FULL // of the log's index, which is a file as well
		}
		switch code {
		case sqlite3.SQLITE_NOTADB:
			return fmt.Errorf("%w: %s: the file is no SQLite database: name another file with --database", ErrForeign, tried)
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

// Tag is a key and a value that an administrator gave to items.
type Tag struct{ Key, Value string }

func (t Tag) String() string { return t.Key + "=" + t.Value }

// keyOf is how the database finds an item: the first eight bytes of its path's
// hash. So references can be written down without looking anything up. Two of
// ten million paths share them with a probability of 1 in 300,000; then the
// second to come is refused, with an error.
func keyOf(hash narinfo.PathHash) int64 {
	return int64(binary.BigEndian.Uint64(hash[:8]))
}

// hashOf makes a column's value a path hash. It is NULL where an item's
// narinfo is gone, which only damage can do.
func hashOf(column driver.Value) (hash narinfo.PathHash, err error) {
	if n := copy(hash[:], blob(column)); n != len(hash) {
		return hash, fmt.Errorf("%w: a path hash has %d bytes, want %d", ErrDamaged, n, len(hash))
	}
	return hash, nil
}
