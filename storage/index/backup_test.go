package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// tables returns all rows of a database.
func tables(t testing.TB, path string) map[string][]string {
	t.Helper()
	c, err := connect(t.Context(), fileName(path))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	all := make(map[string][]string)
	err = c.rows("SELECT name FROM sqlite_schema WHERE type = 'table'", nil, func(row []driver.Value) (bool, error) {
		all[row[0].(string)] = nil
		return true, nil
	})
	for name := range all {
		err = errors.Join(err, c.rows("SELECT * FROM "+name, nil, func(row []driver.Value) (bool, error) {
			all[name] = append(all[name], fmt.Sprintf("%v", row))
			return true, nil
		}))
	}
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// TestBackup: a backup has everything except pending deletes, can replace the database, and
// then keeps withdrawn items for another grace period.
func TestBackup(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	for n := range 40 {
		put(t, x, testNarinfo(n, 1, []int{0, n}, 10))
	}
	pinned, withdrawn := testPath(7).Hash, testPath(8).Hash
	update(t, x, func(tx *Tx) error {
		_, err1 := tx.Pin(pinned, testTime)
		_, err2 := tx.Withdraw(withdrawn, testTime)
		return errors.Join(err1, err2, tx.AddTags(pinned, []Tag{{"branch", "main"}}), tx.AddPendingDeletes([]string{"nar/left"}), tx.Remove(testPath(9).Hash, testTime),
			tx.conn.exec("INSERT INTO uses SELECT id, 3, 4 FROM items"),
			tx.conn.exec("INSERT INTO cached_files (item, type, size, last_used) SELECT id, 'zstd', 3, 4 FROM items"))
	})
	path := filepath.Join(t.TempDir(), "backup of it?")
	taken := time.Now().Add(-time.Hour).Truncate(time.Second)
	if err := x.Backup(t.Context(), path, false, taken); err != nil {
		t.Fatal(err)
	}
	wantAlone(t, filepath.Dir(path), filepath.Base(path))
	want := tables(t, x.path)
	want["settings"] = append(want["settings"], fmt.Sprintf("[%s %s]", takenSetting, taken.UTC().Format(time.RFC3339)))
	got := tables(t, path)
	if len(want["leftovers"]) == 0 {
		t.Error("the test has no pending deletes")
	}
	want["leftovers"] = nil
	if !maps.EqualFunc(got, want, func(a, b []string) bool {
		slices.Sort(a)
		slices.Sort(b)
		return slices.Equal(a, b)
	}) {
		t.Errorf("the backup has\n%v\nwant\n%v", got, want)
	}
	for _, table := range []string{"pins", "item_tags", "uses", "cached_files", "recent_changes"} {
		if len(got[table]) == 0 {
			t.Errorf("the test has nothing in table %s", table)
		}
	}

	restored, err := Open(t.Context(), path, Options{Access: Write})
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	// A backup of a backup keeps the older time.
	again := filepath.Join(t.TempDir(), "again")
	if err := restored.Backup(t.Context(), again, false, time.Now()); err != nil {
		t.Fatal(err)
	}
	if got := tables(t, again)["settings"]; !slices.Contains(got, fmt.Sprintf("[%s %s]", takenSetting, taken.UTC().Format(time.RFC3339))) {
		t.Errorf("a backup of the backup has the settings %v", got)
	}
	if restored.Instance() != x.Instance() {
		t.Errorf("it is instance %s, want %s", restored.Instance(), x.Instance())
	}
	now := time.Now()
	if due, err := restored.DeletableItems(t.Context(), now, 9); err != nil || len(due) != 1 {
		t.Errorf("before: %d items may be deleted, %v", len(due), err)
	}
	if at, err := restored.Restored(t.Context(), now); err != nil || !at.Equal(taken) {
		t.Errorf("taken at %v, want %v: %v", at, taken, err)
	}
	grace := unadvertised.expiry(now.Add(answersKept)).Sub(now)
	for at, want := range map[time.Duration]int{0: 0, grace - time.Second: 0, grace + time.Second: 1} {
		if due, err := restored.DeletableItems(t.Context(), now.Add(at), 9); err != nil || len(due) != want {
			t.Errorf("after %v: %d items may be deleted, want %d: %v", at, len(due), want, err)
		}
	}
	if at, err := restored.Restored(t.Context(), now.Add(time.Hour)); err != nil || !at.IsZero() {
		t.Errorf("the second time: %v, %v", at, err)
	}
	if at, err := x.Restored(t.Context(), now); err != nil || !at.IsZero() {
		t.Errorf("the original: %v, %v", at, err)
	}
}

// TestCopied: a database that was copied into place, such as a restored backup, is shared
// with the group of its directory when its owner opens it, also by a symbolic link.
func TestCopied(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	path, link := filepath.Join(directory, "index.db"), filepath.Join(t.TempDir(), "link.db")
	if err := openTest(t).Backup(t.Context(), path, false, testTime); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(path, 0o644), os.Chmod(directory, 0o775), os.Symlink(path, link)); err != nil {
		t.Fatal(err)
	}
	x, err := Open(t.Context(), link, Options{Access: Write})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o664 {
		t.Errorf("it has mode %v, want 0664: %v", info.Mode(), err)
	}
}

// TestBackupReading: a backup works with an index that is open for reading, while others
// write and afterwards.
func TestBackupReading(t *testing.T) {
	t.Parallel()
	const items = 200
	database := filepath.Join(t.TempDir(), "index.db")
	back := func() map[string][]string {
		t.Helper()
		x, err := Open(t.Context(), database, Options{Access: Read})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "backup")
		if err := x.Backup(t.Context(), path, false, testTime); err != nil {
			t.Fatal(err)
		}
		err = x.readers.do(t.Context(), func(c *connection) error { return c.script("CREATE TEMP TABLE t (x); INSERT INTO t VALUES (1)") })
		if err == nil {
			t.Error("the index can be changed after a backup")
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		return tables(t, path)
	}
	w := startWriter(t, database)
	writing := helper(t, database, 1, items-1)
	if err := writing.Start(); err != nil {
		t.Fatal(err)
	}
	for n := 0; ; n++ {
		got := back()
		count := len(got["items"])
		if want := fmt.Sprintf("[1 %d ", count); len(got["narinfos"]) != count || !strings.HasPrefix(got["totals"][0], want) {
			t.Fatalf("backup %d has %d items, %d narinfos, and the totals %v", n, count, len(got["narinfos"]), got["totals"])
		}
		if count == items {
			t.Logf("%d backups", n)
			break
		}
	}
	if err := writing.Wait(); err != nil {
		t.Fatal(err)
	}
	w.close(t)
	if count := len(back()["items"]); count != items {
		t.Errorf("%d items, want %d", count, items)
	}
}

// TestBackupRefused: Backup replaces an existing file only with replace, and only if no
// server uses it. If it fails, nothing has changed.
func TestBackupRefused(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(0, 1, nil, 10))
	for name, test := range map[string]struct {
		prepare func(path string) error
		replace bool
		want    string // "" for success
	}{
		"existing":           {func(path string) error { return os.WriteFile(path, []byte("x"), 0o644) }, false, "--replace"},
		"existing, replaced": {func(path string) error { return os.WriteFile(path, []byte("x"), 0o644) }, true, ""},
		"link to none":       {func(path string) error { return os.Symlink(path+".x", path) }, false, "exists"},
		"directory":          {func(path string) error { return os.Mkdir(path, 0o755) }, true, "regular file"},
		"itself":             {func(path string) error { return os.Symlink(x.path, path) }, true, "the database itself"},
		"no directory":       {func(path string) error { return os.Remove(filepath.Dir(path)) }, false, "no such file"},
		"left unfinished":    {func(path string) error { return os.WriteFile(path+unfinishedCopy, make([]byte, 9999), 0o644) }, false, ""},
		"link as unfinished": {func(path string) error { return os.Symlink(x.path, path+unfinishedCopy) }, false, "symbolic links"},
		"other database": {func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.WriteFile(path+".lock", nil, 0o644))
		}, true, "another server"},
		"other open database": {func(path string) error {
			return errors.Join(os.WriteFile(path, nil, 0o644), os.WriteFile(path+"-wal", nil, 0o644))
		}, true, "another server"},
		"being written": {func(path string) error {
			file, err := lockUnfinished(path + unfinishedCopy)
			if err == nil {
				t.Cleanup(func() { file.Close() })
			}
			return err
		}, false, "another process is writing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			directory := filepath.Join(t.TempDir(), "d")
			path := filepath.Join(directory, "backup")
			if err := errors.Join(os.Mkdir(directory, 0o755), test.prepare(path)); err != nil {
				t.Fatal(err)
			}
			before, _ := os.ReadDir(directory)
			err := x.Backup(t.Context(), path, test.replace, testTime)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				wantAlone(t, directory, "backup")
				if got := len(tables(t, path)["items"]); got != 1 {
					t.Errorf("%d items", got)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), path) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			after, _ := os.ReadDir(directory)
			if len(after) != len(before) {
				t.Errorf("the directory has %v, before %v", after, before)
			}
		})
	}
	t.Run("interrupted", func(t *testing.T) {
		t.Parallel()
		directory := t.TempDir()
		path := filepath.Join(directory, "backup")
		if err := os.WriteFile(path, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := x.Backup(ctx, path, true, testTime); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		wantAlone(t, directory, "backup")
		if text, err := os.ReadFile(path); string(text) != "x" {
			t.Errorf("the old backup: %q, %v", text, err)
		}
	})
}

// TestCheckLog: the log of the database that a restored backup replaced is refused; the
// backup's own log is accepted.
func TestCheckLog(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(0, 1, nil, 10))
	directory := t.TempDir()
	database, crashed := filepath.Join(directory, "index.db"), filepath.Join(directory, "crashed.db")
	if err := x.Backup(t.Context(), database, false, testTime); err != nil {
		t.Fatal(err)
	}
	if err := CheckLog(database); err != nil {
		t.Errorf("without a log: %v", err)
	}
	// As after a crash: the file and its log.
	for from, to := range map[string]string{x.path: crashed, x.path + "-wal": crashed + "-wal"} {
		text, err := os.ReadFile(from)
		if err == nil {
			err = os.WriteFile(to, text, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := CheckLog(crashed); err != nil {
		t.Errorf("its own log: %v", err)
	}
	if err := os.Rename(crashed+"-wal", database+"-wal"); err != nil {
		t.Fatal(err)
	}
	if err := CheckLog(database); err == nil || !strings.Contains(err.Error(), "remove "+database+"-wal and") {
		t.Errorf("another's log: %v", err)
	}
	if err := os.Truncate(database+"-wal", 0); err != nil {
		t.Fatal(err)
	}
	if err := CheckLog(database); err != nil {
		t.Errorf("an empty log: %v", err)
	}
	if err := CheckLog(filepath.Join(directory, "none")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no database: %v", err)
	}
}
