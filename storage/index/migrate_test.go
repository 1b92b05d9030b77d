package index

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// nextVersion is what a later version of the program may add.
var nextVersion = append(slices.Clone(migrations),
	`CREATE TABLE later (item INTEGER PRIMARY KEY REFERENCES items (id) ON DELETE CASCADE, note TEXT NOT NULL) STRICT;
	ALTER TABLE items ADD COLUMN flags INTEGER NOT NULL DEFAULT 7;
	INSERT INTO later SELECT id, 'from before' FROM items;`)

// version returns the schema version that a database file has.
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

// oldDatabase makes one of the first version with two items.
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

// wantOldData asserts that what oldDatabase made is all there.
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
	for range 2 { // the second time there is nothing to do
		x, err := open(t.Context(), path, Options{}, nextVersion)
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
	// The older program doesn't touch it.
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

// TestMigrateNew: a new database goes through all versions at once.
func TestMigrateNew(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	x, err := open(t.Context(), path, Options{}, nextVersion)
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

// TestMigrateFails: a step that fails halfway leaves all as it was.
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
			x, err := open(t.Context(), path, Options{}, steps)
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

// TestMigrateAtOnce: several open a database of an older version, one migrates
// it, and those that have it open go on.
func TestMigrateAtOnce(t *testing.T) {
	t.Parallel()
	for range 3 {
		path := oldDatabase(t)
		old := openAt(t, path)
		var group sync.WaitGroup
		for range 4 {
			group.Go(func() {
				x, err := open(context.Background(), path, Options{}, nextVersion)
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
