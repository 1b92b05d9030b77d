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

// Migration is the result of [Migrate].
type Migration struct {
	// From and To are schema versions. They are equal if the database was up to date.
	From, To int
	// Copy is the name of the copy of the old database, or "" if it was up to date.
	Copy string
}

const (
	// A copy has the name of its database, copySuffix and its schema version.
	copySuffix = ".schema-"
	// unfinishedCopy is appended to the name until the copy is complete. A file with this
	// suffix that a killed process left is useless.
	unfinishedCopy = ".copying"
)

// NeedsMigration reports whether [Migrate] would update the database. It is false for a
// missing file and for one that [Open] refuses.
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

// Migrate updates a database of an older version of this program. It first writes a copy,
// PATH.schema-N, which the older program can use instead. If a file of that name exists,
// the copy gets another name. Both files are flushed to the disk, or nothing has changed.
// Other writers wait meanwhile; writing the copy takes about as long as copying the file.
//
// The errors are those of [Open], or [disk.ErrNoRoom] if the copy doesn't fit on the disk.
// If the context ends, an unfinished copy may remain, which the next call removes.
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
		// Opening and closing it has checkpointed the log of a crashed process.
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
		_ = conn.script("ROLLBACK") // err has the cause
		// Freeing gigabytes takes longer than a supervisor waits.
		if copied != "" && ctx.Err() == nil {
			if removeErr := os.Remove(copied); !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}()
	// Another process may have migrated it meanwhile.
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
	// Name the copy last, so that a failure leaves none.
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

// copyOld writes a copy of the database. The caller holds the write lock.
func copyOld(ctx context.Context, absolute, copied string, version int) (err error) {
	if err := os.Remove(copied); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var need int64
	for _, suffix := range []string{"", "-wal"} {
		if info, err := os.Stat(resolve(absolute) + suffix); err == nil {
			need += 2 * info.Size() // the migration may write all pages to the log
		}
	}
	if err := disk.Look(nil).Check(filepath.Dir(absolute), need); err != nil {
		return err
	}
	// VACUUM can't run in the transaction that holds the lock.
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
		return fmt.Errorf("%w: it has schema version %d, want %d", ErrUnsound, found, version)
	}
	disk.Inherit(copied, disk.GroupWrites)
	file, err := os.Open(copied)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}

// maxCopies is how many copies of one schema version may exist beside a database.
const maxCopies = 100

// nameCopy renames the copy. If the name exists, it appends a number.
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

// namedValues converts values to arguments of a statement.
func namedValues(values []driver.Value) []driver.NamedValue {
	named := make([]driver.NamedValue, len(values))
	for i, value := range values {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: value}
	}
	return named
}

// SchemaVersion returns the schema version of databases of this program.
func SchemaVersion() int { return len(migrations) }
