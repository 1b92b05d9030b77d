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

// takenSetting is when a backup was taken, as [time.RFC3339] has it. Only a backup has
// it, until [Index.Restored] removes it.
const takenSetting = "backup.taken"

// Backup writes all of the database but pending deletes, as it is at one moment, to a
// file that can take the place of the database later. It may be called with [Read], and does not hold up
// writers. SQLite has checked the file when Backup returns, and it is flushed to the disk.
// An existing file is [fs.ErrExist] unless it is to be replaced; a database in use is
// never replaced. On failure nothing has changed.
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
	// SQLite opens the file by its name. Closing this descriptor drops SQLite's locks, so
	// it is closed last.
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

// mayReplace returns an error where a backup must not be written to that file.
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
	// A server that uses it would go on with a file that has no name.
	for _, suffix := range []string{"-wal", "-shm", ".lock", reserveSuffix} {
		if _, err := os.Lstat(target + suffix); err == nil {
			return fmt.Errorf("this is the database of another server, as %s%s shows: name another file", target, suffix)
		}
	}
	return nil
}

// lockUnfinished creates an unfinished file, or empties the one that a killed process has
// left, and locks it.
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
		return nil, busy // it has just finished
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
		// The pragma is for all files of the connection, the new one included.
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
	// A backup of a backup is as old as that one. Files that were about to be deleted may
	// have been imported again by the time when the backup is restored.
	err = errors.Join(
		c.exec("INSERT OR IGNORE INTO settings VALUES (?, ?)", takenSetting, at.UTC().Format(time.RFC3339)),
		c.exec("DELETE FROM leftovers"))
	if err != nil {
		return err
	}
	return c.checkIntegrity(ctx)
}

// Restored returns when the backup was taken that this database is restored from, and the
// zero time after that. An item that is withdrawn in the backup may have been imported
// again since, so the grace periods of all begin anew.
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

// CheckLog refuses a backup with the write-ahead log of another database, in whose place
// it was put: SQLite would write that log into it. Only a file that [Index.Backup] has made
// can be recognised, until it is opened for writing.
// The process must not have the database open, as this would drop its locks.
func CheckLog(path string) error {
	log, err := os.Stat(resolve(path) + "-wal")
	if err != nil || log.Size() == 0 {
		return nil // opening the database reports other failures
	}
	file, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer file.Close()
	// See https://www.sqlite.org/fileformat.html#file_format_version_numbers. SQLite sets
	// them to 2 before it makes a log; VACUUM INTO leaves them at 1.
	versions := make([]byte, 2)
	if _, err := file.ReadAt(versions, 18); err != nil || !slices.Equal(versions, []byte{1, 1}) {
		return nil
	}
	return fmt.Errorf("database %s: %[1]s-wal belongs to another database, which this one has replaced, as after a backup was restored: make sure that no process uses it, then remove %[1]s-wal and %[1]s-shm", resolve(path))
}
