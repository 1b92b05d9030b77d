package owner

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
)

// unreadable is a store with a directory that even root can't read.
type unreadable struct {
	bytestore.Store
	name string
}

func (u unreadable) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) {
		if !yield(bytestore.Info{Name: u.name}, fs.ErrPermission) {
			return
		}
		for info, err := range u.Store.List(ctx) {
			if !yield(info, err) {
				return
			}
		}
	}
}

// TestUnreadable: a mirror claims a storage with an unreadable directory, unless it may
// contain nars.
func TestUnreadable(t *testing.T) {
	t.Parallel()
	store, err := directory.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	for name, can := range map[string]bool{"lost+found": true, "nar": false, "nar/lzip": false, "": false} {
		c := Claim{Store: unreadable{store, name}, Self: Self("a", "/a.db"), Policy: IfEmpty}
		if err := c.MayClaim(t.Context()); (err == nil) != can {
			t.Errorf("%q: %v", name, err)
		}
	}
}

// inUse reports whether another process has locked a database; otherwise it keeps the lock.
func inUse(t *testing.T, database string) bool {
	t.Helper()
	l, err := NewDatabaseLock(database)
	var used *InUseError
	if errors.As(err, &used) {
		return true
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	if l.Unlocked != nil {
		t.Errorf("%s is not locked: %v", database, l.Unlocked)
	}
	return false
}

// TestLockUnwritable: on a full or read-only file system, a server starts, and a second one
// doesn't.
func TestLockUnwritable(t *testing.T) {
	t.Parallel()
	for _, isThere := range []bool{false, true} {
		dir := testfs.Small(t, 1<<20)
		database := filepath.Join(dir, "a.db")
		files := []string{database}
		if isThere {
			files = append(files, database+".lock")
		}
		for _, file := range files {
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		testfs.Freeze(t, dir)
		if inUse(t, database) || !inUse(t, database) {
			t.Errorf("with a lock file %t: want only the first to start", isThere)
		}
		l, err := NewLock(filepath.Join(dir, "dump.owner"), Self("a", database))
		if err != nil || l.Unlocked == nil || l.SetAddress("x") != nil || l.Close() != nil {
			t.Errorf("a dump: %+v, %v", l, err)
		}
	}
	// There is space again when the second one starts.
	database := filepath.Join(t.TempDir(), "a.db")
	directory, err := os.Open(filepath.Dir(database))
	if err != nil {
		t.Fatal(err)
	}
	if err := flock(directory, 2); err != 0 {
		t.Fatal(err)
	}
	if !inUse(t, database) {
		t.Error("the directory is locked, but not the database")
	}
	if err := directory.Close(); err != nil || inUse(t, database) {
		t.Error("still in use", err)
	}
}

// TestLockNames: a database has one lock under all its names, even before it exists.
func TestLockNames(t *testing.T) {
	t.Parallel()
	for _, isThere := range []bool{false, true} {
		dir := t.TempDir()
		database := filepath.Join(dir, "real", "a.db")
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "real"), 0o755), os.Symlink("real", filepath.Join(dir, "link")), os.Symlink("link/a.db", filepath.Join(dir, "b.db"))); err != nil {
			t.Fatal(err)
		}
		if isThere {
			if err := os.WriteFile(database, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if inUse(t, filepath.Join(dir, "b.db")) {
			t.Error("in use")
		}
		for _, name := range []string{"b.db", "link/a.db", "real/a.db", "real/../link/a.db"} {
			if !inUse(t, filepath.Join(dir, name)) {
				t.Errorf("%s has a lock of its own", name)
			}
		}
		if _, err := os.Stat(database + ".lock"); err != nil {
			t.Error(err)
		}
	}
}
