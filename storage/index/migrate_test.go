package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// nextVersion is a step that a later version may add.
var nextVersion = append(slices.Clone(migrations),
	`CREATE TABLE later (item INTEGER PRIMARY KEY REFERENCES items (id) ON DELETE CASCADE, note TEXT NOT NULL) STRICT;
	ALTER TABLE items ADD COLUMN flags INTEGER NOT NULL DEFAULT 7;
	INSERT INTO later SELECT id, 'from before' FROM items;`)

// version returns the schema version of a database file.
func version(t testing.TB, path string) int64 {
	t.Helper()
	c, err := connect(t.Context(), fileName(path))
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	n, err := c.integer("PRAGMA user_version")
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// oldDatabase creates a database of the first version with two items.
func oldDatabase(t testing.TB) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "db")
	x, err := Open(context.Background(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, x, testNarinfo(1, 1, []int{2}, 10))
	put(t, x, testNarinfo(2, 1, []int{2}, 20))
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

// wantOldData asserts that the data of oldDatabase is complete.
func wantOldData(t testing.TB, x *Index) {
	t.Helper()
	wantTotals(t, x, Totals{2, 2, 30})
	for n := 1; n <= 2; n++ {
		want := testNarinfo(n, 1, []int{2}, int64(10*n))
		if text, err := x.Text(context.Background(), want.StorePath.Hash); err != nil || !bytes.Equal(text, want.Text) {
			t.Errorf("item %d: %q, %v", n, text, err)
		}
	}
	if got := referrers(t, x, 2, 10); !slices.Equal(got, []int{1, 2}) {
		t.Errorf("referrers are %v", got)
	}
	wantSound(t, x)
}

func TestMigrate(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	for range 2 { // the second time, it is up to date
		x, err := open(t.Context(), path, Options{Migrate: true}, nextVersion)
		if err != nil {
			t.Fatal(err)
		}
		wantOldData(t, x)
		if n, err := x.writer.integer("SELECT count(*) FROM later JOIN items ON id = item WHERE flags = 7"); err != nil || n != 2 {
			t.Errorf("%d rows of the new table, %v", n, err)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := version(t, path); got != int64(len(nextVersion)) {
		t.Errorf("version is %d, want %d", got, len(nextVersion))
	}
	// The older program doesn't change it.
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), path, Options{})
	if !errors.Is(err, ErrNewerVersion) || !strings.Contains(err.Error(), path) {
		t.Errorf("the older program: %v, want ErrNewerVersion and the path", err)
	}
	if after, err := os.ReadFile(path); err != nil || !bytes.Equal(after, before) {
		t.Errorf("the older program has changed the file, %v", err)
	}
}

// TestMigrateNew: a new database gets the newest version at once.
func TestMigrateNew(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	x, err := open(t.Context(), path, Options{Migrate: true}, nextVersion)
	if err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if got := version(t, path); got != int64(len(nextVersion)) {
		t.Errorf("version is %d, want %d", got, len(nextVersion))
	}
}

// TestMigrateFails: a step that fails halfway changes nothing.
func TestMigrateFails(t *testing.T) {
	t.Parallel()
	for name, last := range map[string]string{
		"bad SQL":     "CREATE TABLE half (a); INSERT INTO half VALUES (1); NONSENSE",
		"bad table":   "CREATE TABLE half (a); DELETE FROM items; INSERT INTO absent VALUES (1)",
		"constraint":  "CREATE TABLE half (a UNIQUE); INSERT INTO half VALUES (1), (1)",
		"after a few": "CREATE TABLE half (a)",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := oldDatabase(t)
			steps := append(slices.Clone(nextVersion), last)
			if name == "after a few" {
				steps = append(steps, "ALTER TABLE items ADD COLUMN flags")
			}
			x, err := open(t.Context(), path, Options{Migrate: true}, steps)
			if err == nil {
				x.Close()
				t.Fatal("it was taken")
			}
			if !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "from version") {
				t.Errorf("%q does not say which file and step", err)
			}
			if got := version(t, path); got != int64(len(migrations)) {
				t.Errorf("version is %d, want %d as before", got, len(migrations))
			}
			x = openAt(t, path)
			wantOldData(t, x)
			if n, err := x.writer.integer("SELECT count(*) FROM sqlite_schema WHERE name IN ('half', 'later')"); err != nil || n != 0 {
				t.Errorf("%d new tables are there, %v", n, err)
			}
			put(t, x, testNarinfo(3, 1, nil, 1))
		})
	}
}

// TestMigrateAtOnce: several open an old database concurrently, one migrates it, and the
// ones that have it open continue to work.
func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	for range 3 {
		path := oldDatabase(t)
		old := openAt(t, path)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				x, err := open(context.Background(), path, Options{Migrate: true}, nextVersion)
				if err != nil {
					t.Error(err)
					return
				}
				if err := x.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		wantOldData(t, old)
		group.Wait()
		wantOldData(t, old)
		put(t, old, testNarinfo(3, 1, nil, 1))
		wantTotals(t, old, Totals{3, 3, 31})
	}
}

// names returns the names in a directory.
func names(t testing.TB, directory string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names
}

// wantCopy asserts that a file is a database of an old version with the data of
// versionDatabase, and that the program of that version can use it.
func wantCopy(t testing.TB, path string, version int) {
	t.Helper()
	c, err := connect(t.Context(), dataSource(path, defaultWriterCache))
	if err != nil {
		t.Fatal(err)
	}
	if found, err := recognise(c, path, version); err != nil || found != version {
		t.Errorf("%s: version %d, %v; want %d", path, found, err, version)
	}
	if n, err := c.integer("SELECT CAST(value AS INTEGER) FROM tags WHERE key = 'schema'"); err != nil || n != int64(version) {
		t.Errorf("%s: tag is %d, %v; want %d", path, n, err, version)
	}
	if row, err := c.first("PRAGMA integrity_check"); err != nil || row[0] != "ok" {
		t.Errorf("%s: integrity_check: %v, %v", path, row, err)
	}
	if err := c.close(); err != nil {
		t.Error(err)
	}
}

// TestMigrateWithCopy migrates a database of each old version.
func TestMigrateWithCopy(t *testing.T) {
	t.Parallel()
	for version := 1; version < len(migrations); version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			path := versionDatabase(t, version)
			kept := fmt.Sprintf("%s.schema-%d", path, version)
			// Left by a killed run, and a copy of an earlier run.
			for name, text := range map[string]string{kept + unfinishedCopy: "half a copy", kept: "of before"} {
				if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if !NeedsMigration(t.Context(), path) {
				t.Error("it needs no migration")
			}
			done, err := Migrate(t.Context(), path)
			if want := (Migration{version, len(migrations), kept + ".2"}); err != nil || done != want {
				t.Fatalf("%+v, %v; want %+v", done, err, want)
			}
			if text, err := os.ReadFile(kept); err != nil || string(text) != "of before" {
				t.Errorf("the earlier copy is %q, %v", text, err)
			}
			wantCopy(t, kept+".2", version)
			if got := names(t, filepath.Dir(path)); !slices.Equal(got, []string{"db", filepath.Base(kept), filepath.Base(kept) + ".2"}) {
				t.Errorf("files: %q", got)
			}
			// The second time, it is up to date.
			done, err = Migrate(t.Context(), path)
			if want := (Migration{From: len(migrations), To: len(migrations)}); err != nil || done != want {
				t.Errorf("again: %+v, %v; want %+v", done, err, want)
			}
			if NeedsMigration(t.Context(), path) {
				t.Error("it still needs a migration")
			}
			x := openAt(t, path)
			put(t, x, testNarinfo(1, 1, nil, 10))
			wantTotals(t, x, Totals{1, 1, 10})
			wantSound(t, x)
		})
	}
}

// TestMigrateWithCopyFails: if a step fails or the context ends, nothing has changed.
func TestMigrateWithCopyFails(t *testing.T) {
	t.Parallel()
	bad := append(slices.Clone(nextVersion), "CREATE TABLE half (a); INSERT INTO absent VALUES (1)")
	path := oldDatabase(t)
	if _, err := migrateWithCopy(t.Context(), path, bad); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	endless := append(slices.Clone(migrations), "CREATE TABLE endless AS WITH RECURSIVE n (i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT i FROM n")
	ended := make(chan error, 1)
	go func() {
		_, err := migrateWithCopy(ctx, path, endless)
		ended <- err
	}()
	// The copy is complete when the steps begin.
	for {
		if info, err := os.Stat(path + ".schema-" + fmt.Sprint(len(migrations)) + unfinishedCopy); err == nil && info.Size() > 0 {
			break
		}
		select {
		case err := <-ended:
			t.Fatal(err)
		case <-time.After(time.Millisecond):
		}
	}
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("%v, want context.Canceled", err)
	}
	if got := version(t, path); got != int64(len(migrations)) {
		t.Errorf("version is %d, want %d as before", got, len(migrations))
	}
	for _, name := range names(t, filepath.Dir(path)) {
		if name != "db" && !strings.HasSuffix(name, unfinishedCopy) {
			t.Errorf("there is a file %s", name)
		}
	}
	wantOldData(t, openAt(t, path))
}

// TestMigrateBeside: handles on an older database continue to work while it is copied and
// migrated.
func TestMigrateBeside(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	old := openAt(t, path)
	put(t, old, testNarinfo(3, 1, nil, 100)) // in the log
	done, err := migrateWithCopy(t.Context(), path, nextVersion)
	if err != nil {
		t.Fatal(err)
	}
	wantTotals(t, old, Totals{3, 3, 130})
	put(t, old, testNarinfo(4, 1, nil, 1))
	wantTotals(t, old, Totals{4, 4, 131})
	wantTotals(t, openAt(t, done.Copy), Totals{3, 3, 130})
}
