package index

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/narinfo"
)

// TestPragmas checks every connection, since pragmas are set for each one.
func TestPragmas(t *testing.T) {
	t.Parallel()
	options := Options{WriterCache: 3 << 20, ReaderCache: 8 << 20, Bulk: true}
	x, err := Open(t.Context(), filepath.Join(t.TempDir(), "db"), options)
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	w := watch(t, x)
	connections := map[string]*connection{"writer": x.writer, "watcher": w.conn}
	count := len(x.readers.idle)
	if count < 4 || count != x.readers.size() {
		t.Errorf("%d readers in a pool of %d", count, x.readers.size())
	}
	for i, c := range x.readers.idle {
		connections[fmt.Sprintf("reader %d", i)] = c
	}
	for name, c := range connections {
		want := map[string]any{
			"journal_mode":       "wal",
			"busy_timeout":       int64(0), // see connection
			"foreign_keys":       int64(1),
			"synchronous":        int64(2), // full
			"query_only":         int64(1),
			"cache_size":         int64(-(8 << 10) / int64(count)),
			"temp_store":         int64(2), // memory
			"page_size":          int64(pageSize),
			"journal_size_limit": int64(64 << 20),
			"wal_autocheckpoint": int64(checkpointBytes / pageSize),
		}
		if name == "writer" {
			want["query_only"] = int64(0)
			want["cache_size"] = int64(-3 << 10)
			want["wal_autocheckpoint"] = x.maxLog(bulkCheckpointBytes) / pageSize
		}
		for pragma, want := range want {
			row, err := c.first("PRAGMA " + pragma)
			if err != nil || row == nil || row[0] != want {
				t.Errorf("%s: %s is %v, %v; want %v", name, pragma, row, err, want)
			}
		}
		if err := c.exec("DELETE FROM items"); (err == nil) != (name == "writer") {
			t.Errorf("%s: writing gives %v", name, err)
		}
	}
}

// TestFileModes: other users of the group can also write.
func TestFileModes(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	x := openAt(t, path)
	put(t, x, testNarinfo(1, 1, nil, 1))
	database, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{"-wal", "-shm"} {
		info, err := os.Stat(path + suffix)
		if err != nil || info.Mode() != database.Mode() {
			t.Errorf("%s: %v, %v; want the mode of the database, %v", suffix, info, err, database.Mode())
		}
	}
}

func TestOddPaths(t *testing.T) {
	t.Parallel()
	for _, name := range []string{
		"with space.db", "a?mode=memory", "b#fragment", "c%20d", "e%", "f&cache=shared", "g;h", "i+j", "k:l",
		"'quoted'", `"double"`, "Käse", "new\nline", ":memory:", "file:x", "?", "%00", "caf\xe9", strings.Repeat("x", 240),
	} {
		t.Run(fmt.Sprintf("%q", name), func(t *testing.T) {
			t.Parallel()
			directory := filepath.Join(t.TempDir(), "dir with ?#% in it")
			if err := os.Mkdir(directory, 0o755); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(directory, name)
			x := openAt(t, path)
			put(t, x, testNarinfo(1, 1, nil, 1))
			wantTotals(t, x, Totals{1, 1, 1})
			wantTotals(t, openAt(t, path), Totals{1, 1, 1})
			entries, err := os.ReadDir(directory)
			if err != nil {
				t.Fatal(err)
			}
			for _, entry := range entries {
				if !strings.HasPrefix(entry.Name(), name) {
					t.Errorf("there is a file %q as well", entry.Name())
				}
			}
		})
	}
}

// TestRelativePath changes the working directory, so it can't run in parallel.
func TestRelativePath(t *testing.T) {
	directory := t.TempDir()
	t.Chdir(directory)
	x := openAt(t, "relative.db")
	t.Chdir(t.TempDir())
	put(t, x, testNarinfo(1, 1, nil, 1))
	if w := watch(t, x); len(poll(t, w)) != 0 {
		t.Error("changes")
	}
	wantTotals(t, openAt(t, filepath.Join(directory, "relative.db")), Totals{1, 1, 1})
}

// TestInstance: the id of a database is permanent and unique.
func TestInstance(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	first, second, other := openAt(t, path), openAt(t, path), openTest(t)
	if first.Instance() == "" || first.Instance() != second.Instance() || first.Instance() == other.Instance() {
		t.Errorf("instances are %q, %q and %q", first.Instance(), second.Instance(), other.Instance())
	}
	if first.Path() != path {
		t.Errorf("path is %q", first.Path())
	}
}

// TestCloseFolds: closing the last handle leaves a single file.
func TestCloseFolds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	x, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, x, testNarinfo(1, 1, nil, 1))
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
		t.Errorf("the log is still there, of %d bytes", info.Size())
	}
	wantTotals(t, openAt(t, path), Totals{1, 1, 1})
}

// TestItemsInSteps: an iteration over more items than a step yields each once, also if the
// consumer writes meanwhile or stops early.
func TestItemsInSteps(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const count = 2*listStep + 1
	update(t, x, func(tx *Tx) error {
		for n := range count {
			if err := putIn(tx, x, testNarinfo(n, 1, nil, 1), 1, nil); err != nil {
				return err
			}
		}
		return nil
	})
	var hashes []narinfo.PathHash
	for item, err := range x.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, item.Hash)
		if len(hashes)%200 == 0 {
			// Iteration must not yield a replaced item again. Removals are allowed.
			put(t, x, testNarinfo(len(hashes)-1, 2, nil, 1))
			update(t, x, func(tx *Tx) error { return tx.Remove(testPath(len(hashes)-2).Hash, testTime) })
		}
	}
	for i, n := range numbers(t, hashes, count) {
		if i != n {
			t.Fatalf("item %d comes at position %d", n, i)
		}
	}
	if len(hashes) != count {
		t.Errorf("%d items, want %d", len(hashes), count)
	}
	seen := 0
	for range x.Items(t.Context()) {
		if seen++; seen == listStep+1 {
			break
		}
	}
	if seen != listStep+1 {
		t.Errorf("%d items after the break", seen)
	}
}
