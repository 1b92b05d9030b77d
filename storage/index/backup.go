package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
)

// takenSetting is the time of a backup in [time.RFC3339] format. Only a backup has it;
// [Index.Restored] removes it.
const takenSetting = "backup.taken"

// Backup writes a snapshot of the database, without pending deletes, to a file that can
// replace the database. It works with [Read], and doesn't block writers. When it returns,
// SQLite has verified the file and it is flushed to the disk. If the file exists, the error
// is [fs.ErrExist] unless replace is true. Backup never replaces a database in use. On
// failure nothing has changed.
func (x *Index) Backup(ctx context.Context, path string, replace bool, at time.Time) (err error) {
	tried := fmt.Sprintf("back up the database %s to %s", x.path, path)
	defer func() {
		if err != nil {
			err = describe(tried, err)
		}
	}()
	absolute, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	target := resolve(absolute)
	if err := x.mayReplace(target, replace); err != nil {
		return err
	}
	temporary, err := lockUnfinished(target + unfinishedCopy)
	if err != nil {
		return err
	}
	// SQLite opens the file by name. Closing this descriptor drops SQLite's locks, so close
	// it last.
	defer func() { err = errors.Join(err, temporary.Close()) }()
	defer func() {
		if err != nil {
			if removeErr := os.Remove(temporary.Name()); !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}()
	if err := x.backUpTo(ctx, temporary.Name(), at); err != nil {
		return err
	}
	if err := errors.Join(temporary.Sync(), ctx.Err()); err != nil {
		return err
	}
	rename := disk.RenameNew
	if replace {
		rename = os.Rename
	}
	if err := rename(temporary.Name(), target); err != nil {
		return err
	}
	return disk.SyncDirectory(target)
}

// mayReplace returns an error if a backup must not overwrite that file.
func (x *Index) mayReplace(target string, replace bool) error {
	info, err := os.Stat(target)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	if own, err := os.Stat(x.file); err == nil && os.SameFile(own, info) {
		return errors.New("this is the database itself: name another file")
	}
	if !info.Mode().IsRegular() {
		return errors.New("this is not a regular file: name another file")
	}
	if !replace {
		return fmt.Errorf("%w: name another file, or add --replace", fs.ErrExist)
	}
	// A server would continue to use the unlinked file.
	for _, suffix := range []string{"-wal", "-shm", ".lock", reserveSuffix} {
		if _, err := os.Lstat(target + suffix); err == nil {
			return fmt.Errorf("this is the database of another server, because %s%s exists: name another file", target, suffix)
		}
	}
	return nil
}

// lockUnfinished creates and locks an unfinished file, or truncates one that a killed
// process left.
func lockUnfinished(name string) (_ *os.File, err error) {
	file, err := disk.OpenFile(name, os.O_RDWR|unix.O_NOFOLLOW, 0o644, disk.GroupWrites)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Close())
		}
	}()
	busy := fmt.Errorf("another process is writing %s: try again later", name)
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return nil, busy
	} else if err != nil {
		return nil, fmt.Errorf("lock %s: %w", name, err)
	}
	opened, err1 := file.Stat()
	named, err2 := os.Stat(name)
	if err := errors.Join(err1, err2); err != nil || !os.SameFile(opened, named) {
		return nil, busy // the other process has just finished
	}
	return file, file.Truncate(0)
}

func (x *Index) backUpTo(ctx context.Context, target string, at time.Time) (err error) {
	err = x.readers.do(ctx, func(c *connection) (err error) {
		size, err1 := c.integer("PRAGMA page_count")
		free, err2 := c.integer("PRAGMA freelist_count")
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if err := disk.Look(nil).Check(filepath.Dir(target), (size-free)*pageSize); err != nil {
			return err
		}
		defer disk.WriteOut(target)()
		// The pragma applies to all files of the connection, including the new one.
		defer func() { err = errors.Join(err, c.script("PRAGMA query_only = on")) }()
		if err := c.script("PRAGMA query_only = off"); err != nil {
			return err
		}
		return c.execContext(ctx, "VACUUM INTO ?", target)
	})
	if err != nil {
		return err
	}
	c, err := connect(ctx, fileName(target)+"?_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=cache_size(-"+strconv.Itoa(copyCache/1024)+")")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	// A backup of a backup keeps the older time. Drop the pending deletes: by the time of a
	// restore, an import may have added the files again.
	err = errors.Join(
		c.exec("INSERT OR IGNORE INTO settings VALUES (?, ?)", takenSetting, at.UTC().Format(time.RFC3339)),
		c.exec("DELETE FROM leftovers"))
	if err != nil {
		return err
	}
	return c.checkIntegrity(ctx)
}

// Restored returns when the backup was taken that this database was restored from, once.
// All grace periods restart: an item that was withdrawn at the time of the backup may have
// been imported since.
func (x *Index) Restored(ctx context.Context, now time.Time) (taken time.Time, err error) {
	text, err := x.Setting(ctx, takenSetting)
	if err != nil || text == "" {
		return taken, err
	}
	if taken, err = time.Parse(time.RFC3339, text); err != nil {
		return taken, fmt.Errorf("the setting %s in the database: %w", takenSetting, err)
	}
	return taken, x.Reclaim(ctx, func(tx *Tx) error {
		due, err := tx.Expiry(Narinfos, now.Add(answersKept))
		if err != nil {
			return err
		}
		return errors.Join(
			tx.conn.exec("UPDATE narinfos SET delete_after = max(coalesce(delete_after, 0), ?) WHERE withdrawn_at IS NOT NULL", milliseconds(due)),
			tx.SetSetting(takenSetting, ""))
	})
}

// CheckLog returns an error if a backup was restored next to the write-ahead log of the
// previous database, which SQLite would write into it. It recognises a backup only until it
// is first opened for writing. The process must not have the database open, as CheckLog
// would drop its locks.
func CheckLog(path string) error {
	log, err := os.Stat(resolve(path) + "-wal")
	if err != nil || log.Size() == 0 {
		return nil // opening the database reports other errors
	}
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	// See https://www.sqlite.org/fileformat.html#file_format_version_numbers. SQLite sets
	// both to 2 before it creates a log; VACUUM INTO leaves them at 1.
	versions := make([]byte, 2)
	if _, err := file.ReadAt(versions, 18); err != nil || !slices.Equal(versions, []byte{1, 1}) {
		return nil
	}
	return fmt.Errorf("database %s: %[1]s-wal belongs to another database, which this one has replaced, for example by restoring a backup: make sure that no process uses it, then remove %[1]s-wal and %[1]s-shm", resolve(path))
}
