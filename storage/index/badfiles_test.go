package index

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nar-herder/internal/testfs"
)

// makeDatabase creates an SQLite database with a script.
func makeDatabase(t testing.TB, path, script string) {
	t.Helper()
	c, err := connect(context.Background(), fileName(path))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.script(script), c.close()); err != nil {
		t.Fatal(err)
	}
}

// originalSchema approximates the schema of the original Nar Herder.
const originalSchema = `
	CREATE TABLE narinfos (id INTEGER PRIMARY KEY ASC, store_path TEXT NOT NULL, nar_hash TEXT NOT NULL, nar_size INTEGER NOT NULL,
		deriver TEXT, system TEXT, contents NOT NULL, added_at TEXT);
	CREATE UNIQUE INDEX narinfos_store_hash ON narinfos (substr(store_path, 12, 32));
	CREATE TABLE narinfo_files (narinfo_id INTEGER NOT NULL REFERENCES narinfos (id), size INTEGER NOT NULL, compression TEXT, url TEXT NOT NULL);
	CREATE TABLE narinfo_references (narinfo_id INTEGER NOT NULL REFERENCES narinfos (id), store_path TEXT NOT NULL);
	CREATE TABLE tags (id INTEGER PRIMARY KEY ASC, key TEXT NOT NULL, value TEXT NOT NULL);
	CREATE TABLE narinfo_tags (narinfo_id INTEGER NOT NULL REFERENCES narinfos (id), tag_id INTEGER NOT NULL REFERENCES tags (id));
	CREATE TABLE recent_changes (id INTEGER PRIMARY KEY ASC, datetime TEXT NOT NULL, change TEXT NOT NULL, data TEXT NOT NULL);
	INSERT INTO narinfos VALUES (1, '/gnu/store/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0', 'sha256:x', 1, NULL, NULL, 'StorePath: x', NULL);`

// TestBadFiles: a file that is not an index is refused with a reason, and not changed.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name  string
		make  func(t *testing.T, path string)
		want  error    // nil for any
		words []string // in the message, beside the path
	}{
		{"random bytes", func(t *testing.T, path string) {
			content := make([]byte, 100_000)
			_, _ = rand.NewChaCha8([32]byte{}).Read(content)
			write(t, path, content)
		}, ErrForeign, []string{"not an SQLite database", "--database"}},
		{"a few bytes", func(t *testing.T, path string) { write(t, path, []byte("xyz")) }, ErrForeign, []string{"--database"}},
		{"text", func(t *testing.T, path string) {
			write(t, path, bytes.Repeat([]byte("StorePath: /gnu/store/\n"), 1000))
		}, ErrForeign, []string{"--database"}},
		{"header alone", func(t *testing.T, path string) {
			write(t, path, append([]byte("SQLite format 3\x00"), make([]byte, 84)...))
		}, nil, nil},
		{"foreign", func(t *testing.T, path string) {
			makeDatabase(t, path, "CREATE TABLE moz_places (id INTEGER PRIMARY KEY); INSERT INTO moz_places VALUES (1)")
		}, ErrForeign, []string{"another program", "--database"}},
		{"foreign with its own id", func(t *testing.T, path string) {
			makeDatabase(t, path, "PRAGMA application_id = 42; PRAGMA user_version = 1; CREATE TABLE items (id)")
		}, ErrForeign, []string{"another program", "--database"}},
		{"original", func(t *testing.T, path string) { makeDatabase(t, path, originalSchema) },
			ErrOriginal, []string{"original Nar Herder", "nar-herder convert", "--database"}},
		{"original in WAL mode", func(t *testing.T, path string) { makeDatabase(t, path, "PRAGMA journal_mode=wal;"+originalSchema) },
			ErrOriginal, []string{"nar-herder convert"}},
		{"old original", func(t *testing.T, path string) {
			makeDatabase(t, path, "CREATE TABLE narinfos (id INTEGER PRIMARY KEY, store_path TEXT, contents TEXT)")
		}, ErrOriginal, []string{"nar-herder convert"}},
		{"newer", func(t *testing.T, path string) {
			makeDatabase(t, path, "PRAGMA application_id = 0x4e617248; PRAGMA user_version = 99; CREATE TABLE unknown (x)")
		}, ErrNewerVersion, []string{"99", "newer nar-herder"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			directory := t.TempDir()
			path := filepath.Join(directory, "nar_herder.db")
			test.make(t, path)
			before := read(t, path)
			x, err := Open(t.Context(), path, Options{})
			if err == nil {
				x.Close()
				t.Fatal("it was taken")
			}
			t.Log(err)
			if test.want != nil && !errors.Is(err, test.want) || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v, want %v", err, test.want)
			}
			for _, other := range []error{ErrForeign, ErrOriginal, ErrNewerVersion, ErrReadOnly, ErrFull, ErrNotFound} {
				if errors.Is(err, other) && test.want != other && test.want != nil {
					t.Errorf("%v is also %v", err, other)
				}
			}
			for _, word := range append(test.words, path) {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("%q has more than a line", err)
			}
			if !bytes.Equal(read(t, path), before) {
				t.Error("the file was changed")
			}
		})
	}
}

func write(t testing.TB, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o644); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// TestEmptyFiles: an empty file becomes a new database.
func TestEmptyFiles(t *testing.T) {
	t.Parallel()
	for name, make := range map[string]func(path string){
		"no byte":         func(path string) { write(t, path, nil) },
		"no table":        func(path string) { makeDatabase(t, path, "CREATE TABLE x (y); DROP TABLE x; VACUUM") },
		"other page size": func(path string) { makeDatabase(t, path, "PRAGMA page_size = 1024; CREATE TABLE x (y); DROP TABLE x") },
	} {
		path := filepath.Join(t.TempDir(), "db")
		make(path)
		x := openAt(t, path)
		put(t, x, testNarinfo(1, 1, nil, 1))
		wantTotals(t, x, Totals{1, 1, 1})
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// TestTruncated: in a truncated database, each item is correct or an error, and never "not
// found".
func TestTruncated(t *testing.T) {
	t.Parallel()
	whole := filepath.Join(t.TempDir(), "db")
	const count = 300
	x, err := Open(t.Context(), whole, Options{})
	if err != nil {
		t.Fatal(err)
	}
	update(t, x, func(tx *Tx) error {
		for n := range count {
			if err := putIn(tx, x, testNarinfo(n, 1, []int{0, n / 2}, 10), 1, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	content := read(t, whole)
	for _, size := range []int{10, 99, 100, 512, pageSize - 1, pageSize, pageSize + 1, len(content) / 4, len(content) / 2, len(content) - pageSize, len(content) - 1} {
		path := filepath.Join(t.TempDir(), "db")
		write(t, path, content[:size])
		x, err := Open(t.Context(), path, Options{})
		if err != nil {
			if !strings.Contains(err.Error(), path) {
				t.Errorf("cut to %d bytes: %q does not name the file", size, err)
			}
			continue
		}
		failed := 0
		for n := range count {
			text, err := x.Text(t.Context(), testPath(n).Hash)
			switch {
			case err == nil && !bytes.Equal(text, testNarinfo(n, 1, []int{0, n / 2}, 10).Text):
				t.Errorf("cut to %d bytes: item %d has the text %q", size, n, text)
			case errors.Is(err, ErrNotFound) || errors.Is(err, fs.ErrNotExist):
				t.Errorf("cut to %d bytes: item %d is not found: %v", size, n, err)
			case err != nil:
				failed++
			}
		}
		if failed == 0 && size < len(content)-pageSize {
			t.Errorf("cut to %d bytes of %d, no item is missing", size, len(content))
		}
		if err := x.Update(t.Context(), func(tx *Tx) error { return putIn(tx, x, testNarinfo(count, 1, nil, 1), 1, nil) }); err != nil {
			t.Logf("cut to %d bytes: put: %v", size, err)
		}
		_ = x.Close() // the log may not fit into the damaged file
	}
}

// TestDamagedText: an unreadable text is an error, and not "not found".
func TestDamagedText(t *testing.T) {
	t.Parallel()
	for _, damage := range []string{
		"UPDATE narinfos SET text = x'28b52ffd00'", "UPDATE narinfos SET text = x''",
		"UPDATE narinfos SET dictionary = 0, text = x'00'",
	} {
		x := openTest(t)
		n := testNarinfo(1, 1, nil, 1)
		put(t, x, n)
		update(t, x, func(tx *Tx) error { return tx.conn.exec(damage) })
		item, err := x.Item(t.Context(), n.StorePath.Hash)
		if err == nil {
			_, _, err = item.parsed()
		}
		if err == nil || errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v, want an error that is not ErrNotFound", damage, err)
		}
	}
}

func TestUnusablePaths(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	path := filepath.Join(directory, "db")
	pipe := filepath.Join(directory, "pipe")
	if err := errors.Join(os.Mkdir(path, 0o755), unix.Mkfifo(pipe, 0o644)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(directory, "file"), nil)
	for _, test := range []struct {
		path string
		want error
		word string
	}{
		{path, ErrForeign, "not a regular file"},
		{pipe, ErrForeign, "not a regular file"},
		{"/dev/null", ErrForeign, "not a regular file"},
		{filepath.Join(directory, "absent", "db"), nil, "does not exist: create it"},
		{filepath.Join(directory, "file", "db"), nil, "not a directory"},
		{filepath.Join(directory, strings.Repeat("x", 300)), nil, "too long"},
	} {
		x, err := Open(t.Context(), test.path, Options{})
		if err == nil {
			x.Close()
			t.Errorf("%s was accepted", test.path)
			continue
		}
		if test.want != nil && !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.path) || !strings.Contains(err.Error(), test.word) {
			t.Errorf("%s: %v, want %v, the path and %q", test.path, err, test.want, test.word)
		}
	}
}

// TestReadOnly uses a read-only file system, which root can't write either.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	view := testfs.ReadOnly(t, filepath.Dir(path))
	for _, name := range []string{"db", "new"} {
		x, err := Open(t.Context(), filepath.Join(view, name), Options{})
		if err == nil {
			x.Close()
		}
		if !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), view) {
			t.Errorf("%s: %v, want ErrReadOnly and the path", name, err)
		}
	}
	wantOldData(t, openAt(t, path))
}

// TestPermission needs a user other than root.
func TestPermission(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root may do anything: TestReadOnly is its share of this")
	}
	for name, modes := range map[string]struct{ file, directory fs.FileMode }{
		"file":      {0o444, 0o755},
		"unread":    {0o200, 0o755},
		"directory": {0o644, 0o555},
	} {
		path := oldDatabase(t)
		directory := filepath.Dir(path)
		if err := errors.Join(os.Chmod(path, modes.file), os.Chmod(directory, modes.directory)); err != nil {
			t.Fatal(err)
		}
		x, err := Open(t.Context(), path, Options{})
		if err == nil {
			x.Close()
		}
		if !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v, want ErrReadOnly and the path", name, err)
		}
		if err := os.Chmod(directory, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestLostNarinfo: an item without its text is an error, and not "not found".
func TestLostNarinfo(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, nil, 10))
	put(t, x, testNarinfo(2, 1, nil, 10))
	lost, kept := testPath(1).Hash, testPath(2).Hash
	err := x.writer.exec("DELETE FROM narinfos WHERE hash = ?", lost[:])
	if err != nil {
		t.Fatal(err)
	}
	_, textErr := x.Text(t.Context(), lost)
	_, itemErr := x.Item(t.Context(), lost)
	for _, err := range []error{textErr, itemErr} {
		if err == nil || errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), "damaged") {
			t.Errorf("an item without its narinfo: %v", err)
		}
	}
	if _, err := x.Text(t.Context(), kept); err != nil {
		t.Error(err)
	}
	listed := 0
	for _, err := range x.Items(t.Context()) {
		if listed++; err == nil {
			continue
		}
		if !strings.Contains(err.Error(), "damaged") {
			t.Errorf("list: %v", err)
		}
	}
	if listed == 0 {
		t.Error("the list is empty")
	}
}
