package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"nar-herder/internal/disk"
)

// Migration is what [Migrate] has done.
type Migration struct {
	// From and To are versions of the schema. They are equal when there was nothing
	// to do.
	From, To int
	// Copy is the name of the copy of the old database; "" when there was nothing
	// to do.
	Copy string
}

const (
	// copySuffix and a version follow the name of a database in that of its copy.
	copySuffix = ".schema-"
	// unfinishedCopy follows that until the copy is whole. One that was left by a
	// process that ended is of no use.
	unfinishedCopy = ".copying"
)

// NeedsMigration says whether [Migrate] has something to do. It is false also for a
// file that is missing, or that [Open] refuses for another reason.
func NeedsMigration(ctx context.Context, path string) bool {
	return needsMigration(ctx, path, migrations)
}

func needsMigration(ctx context.Context, path string, steps []string) bool {
	absolute, err := filepath.Abs(path)
	if err != nil || prepareFile(absolute, Write) != nil {
		return false
	}
	version, err := recogniseFile(ctx, absolute, path, len(steps))
	return err == nil && version > 0 && version < len(steps)
}

// Migrate brings a database of an older version of this program up to date. Before,
// it writes a copy of it, PATH.schema-N, that the older version can go on with in
// its place; an existing file of that name is left alone, and the copy gets another.
// Both are safe on the disk, or nothing has changed. Other processes wait with
// their writing meanwhile: writing the copy takes about as long as copying the file.
//
// The errors are those of [Open]. It is [disk.ErrNoRoom] where the disk has no room
// for the copy. When the context ends, an unfinished copy may be left, which the next
// call removes.
func Migrate(ctx context.Context, path string) (Migration, error) {
	return migrateWithCopy(ctx, path, migrations)
}

func migrateWithCopy(ctx context.Context, path string, steps []string) (done Migration, err error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return done, fmt.Errorf("database %s: find its absolute path: %w", path, err)
	}
	if err := prepareFile(absolute, Write); err != nil {
		return done, err
	}
	options := Options{Access: Write, Migrate: true}
	version, err := recogniseFile(ctx, absolute, path, len(steps))
	if err == nil {
		err = options.accepts(path, version, len(steps))
	}
	if err != nil {
		return done, err
	}
	tried := fmt.Sprintf("database %s: migrate it", path)
	missing := missingLog(resolve(absolute))
	conn, err := connect(ctx, dataSource(absolute, defaultWriterCache))
	if err != nil {
		return done, describe(tried, err)
	}
	defer func() { err = errors.Join(err, conn.close()) }()
	shareLog(missing)
	if version == len(steps) {
		// Opening and closing it has folded back a log that a crash had left.
		return Migration{From: version, To: version}, nil
	}
	if err := conn.script("BEGIN IMMEDIATE"); err != nil {
		return done, describe(tried+": lock it", err)
	}
	var copied string
	defer func() {
		if err == nil {
			return
		}
		_ = conn.script("ROLLBACK") // err says what went wrong
		// To free gigabytes takes longer than a supervisor waits for the end.
		if copied != "" && ctx.Err() == nil {
			if removeErr := os.Remove(copied); !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}()
	// Another process may have done it while this one waited for the lock.
	if version, err = recognise(conn, path, len(steps)); err != nil {
		return done, err
	}
	if version == len(steps) {
		return Migration{From: version, To: version}, conn.script("ROLLBACK")
	}
	copied = absolute + copySuffix + strconv.Itoa(version) + unfinishedCopy
	if err := copyOld(ctx, absolute, copied, version); err != nil {
		return done, describe(fmt.Sprintf("%s: copy the old one to %s", tried, copied), err)
	}
	if err := conn.applyMigrations(ctx, path, version, steps); err != nil {
		return done, err
	}
	// Only now, so that failures don't leave a copy each.
	name, err := nameCopy(copied, absolute+copySuffix+strconv.Itoa(version))
	if err != nil {
		return done, fmt.Errorf("%s: %w", tried, err)
	}
	copied = name
	if err := conn.script("COMMIT"); err != nil {
		return done, describe(tried+": finish", err)
	}
	return Migration{From: version, To: len(steps), Copy: name}, nil
}

// keepOld writes a copy of the database of that version, whose lock the caller holds.
func copyOld(ctx context.Context, absolute, copied string, version int) (err error) {
	if err := os.Remove(copied); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var need int64
	for _, suffix := range []string{"", "-wal"} {
		if info, err := os.Stat(absolute + suffix); err == nil {
			need += 2 * info.Size() // for the log, a migration may write all pages
		}
	}
	if err := disk.Look(nil).Check(filepath.Dir(absolute), need); err != nil {
		return err
	}
	// VACUUM can't run within the transaction that has the lock.
	reader, err := connect(ctx, fileName(absolute)+"?_pragma=cache_size(-"+strconv.Itoa(copyCache/1024)+")&_pragma=temp_store(memory)")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, reader.close()) }()
	defer disk.WriteOut(copied)()
	if err := reader.execContext(ctx, "VACUUM INTO ?", copied); err != nil {
		return err
	}
	copy, err := connect(ctx, fileName(copied)+"?mode=ro&immutable=1&_query_only=on")
	if err != nil {
		return err
	}
	found, err1 := copy.integer("PRAGMA user_version")
	if err := errors.Join(err1, copy.close()); err != nil {
		return err
	}
	if found != int64(version) {
		return fmt.Errorf("%w: it has schema version %d, and not %d", ErrUnsound, found, version)
	}
	disk.Inherit(copied, disk.GroupWrites)
	// SQLite has closed it.
	file, err := os.Open(copied)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// maxCopies is how many copies of one version are kept beside a database.
const maxCopies = 100

// nameCopy gives a copy its name, or that with a number where there is a file of
// that name.
func nameCopy(copied, name string) (string, error) {
	free := name
	for n := 2; ; n++ {
		err := disk.RenameNew(copied, free)
		if err == nil {
			return free, disk.SyncDirectory(free)
		}
		if !errors.Is(err, fs.ErrExist) || n > maxCopies {
			return "", err
		}
		free = fmt.Sprintf("%s.%d", name, n)
	}
}

// namedValues makes arguments of values.
func namedValues(values []driver.Value) []driver.NamedValue {
	named := make([]driver.NamedValue, len(values))
	for i, value := range values {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: value}
	}
	return named
}
