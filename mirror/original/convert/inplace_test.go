package convert

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/mirror/original"
	"nar-herder/storage/index"
)

// interrupted is a conversion that was stopped after the first batches.
func interrupted(t *testing.T, from, to string, items int) {
	t.Helper()
	makeOriginal(t, from, items)
	ctx, stop := context.WithCancel(t.Context())
	_, err := Convert(ctx, from, to, Options{rows: smallBatch, Progress: func(p Progress) {
		if p.Done > 0 {
			stop()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if _, err := os.Stat(to); err == nil {
		t.Fatal("it is there before it is whole")
	}
}

// severalBatches is a number of items that takes several batches.
const severalBatches, smallBatch = 250, 100

func TestResume(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change  func(t *testing.T, from, to string)
		resumed bool
	}{
		"nothing changed": {func(*testing.T, string, string) {}, true},
		"changed": {func(t *testing.T, from, to string) {
			execute(t, from, "UPDATE narinfos SET added_at = '2000-01-01 00:00:00' WHERE id = 1", "UPDATE narinfos SET added_at = '2023-04-05 06:07:08' WHERE id = 1")
		}, false},
		"row gone, and the file as old and long as before": {func(t *testing.T, from, to string) {
			// The file was restored before the end, so only the number of rows
			// differs.
			x, err := index.Open(t.Context(), to+unfinished, index.Options{})
			must(t, err)
			s, err := load(t.Context(), x)
			must(t, err)
			s.Read--
			must(t, x.Update(t.Context(), s.save))
			must(t, x.Close())
		}, false},
		"begun, and nothing done": {func(t *testing.T, from, to string) {
			must(t, remove(to+unfinished))
			x, err := index.Open(t.Context(), to+unfinished, index.Options{})
			must(t, err)
			must(t, x.Close())
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			from, to := filepath.Join(dir, "from.db"), filepath.Join(dir, "to.db")
			interrupted(t, from, to, severalBatches)
			test.change(t, from, to)
			var first Progress
			result, err := Convert(t.Context(), from, to, Options{rows: smallBatch, Progress: func(p Progress) {
				if first.All == 0 {
					first = p
				}
			}})
			must(t, err)
			if result.Resumed != test.resumed || (first.Done > 0) != test.resumed || result.Items != severalBatches || result.Changes != 2*severalBatches/10 {
				t.Errorf("%+v, from %d", result, first.Done)
			}
			want(t, to, severalBatches)
			onlyFiles(t, dir, "from.db", "to.db")
		})
	}
}

// TestResumeWithLog is [TestResume] for a source with a write-ahead log that a crash has
// left.
func TestResumeWithLog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	running, from, to := filepath.Join(dir, "running.db"), filepath.Join(dir, "from.db"), filepath.Join(dir, "to.db")
	makeOriginal(t, running, severalBatches)
	db, err := sql.Open("sqlite", running)
	must(t, err)
	db.SetMaxOpenConns(1)
	for _, statement := range []string{"PRAGMA journal_mode = wal", "PRAGMA wal_checkpoint(truncate)", "UPDATE narinfos SET contents = contents || 'X: 1' || char(10) WHERE id = 3"} {
		if _, err := db.Exec(statement); err != nil {
			t.Fatal(err)
		}
	}
	for _, suffix := range []string{"", "-wal"} {
		content, err := os.ReadFile(running + suffix)
		must(t, err)
		must(t, os.WriteFile(from+suffix, content, 0o644))
	}
	must(t, db.Close())
	must(t, os.Remove(running))
	ctx, stop := context.WithCancel(t.Context())
	_, err = Convert(ctx, from, to, Options{rows: smallBatch, Progress: func(p Progress) {
		if p.Done > 0 {
			stop()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	result, err := Convert(t.Context(), from, to, Options{})
	if err != nil || !result.Resumed || result.Items != severalBatches {
		t.Errorf("%+v, %v", result, err)
	}
	x, err := index.Open(t.Context(), to, index.Options{})
	must(t, err)
	if text, err := x.Text(t.Context(), hashOf(2)); err != nil || !bytes.Equal(text, append(textOf(2, true), "X: 1\n"...)) {
		t.Errorf("the change that was only in the log: %s, %v", text, err)
	}
	must(t, x.Close())
	onlyFiles(t, dir, "from.db", "to.db")
}

func TestForeignFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, other, to := filepath.Join(dir, "from.db"), filepath.Join(dir, "other.db"), filepath.Join(dir, "to.db")
	makeOriginal(t, from, 5)
	_, err := Convert(t.Context(), from, other, Options{})
	must(t, err)
	execute(t, other, "DELETE FROM settings WHERE key = 'converted'")
	must(t, os.Rename(other, to+unfinished))
	if _, err := Convert(t.Context(), from, to, Options{}); err == nil || !strings.Contains(err.Error(), "move it away") {
		t.Errorf("%v", err)
	}
	want(t, to+unfinished, 5)
}

func TestInPlace(t *testing.T) {
	t.Parallel()
	kept := func(t *testing.T, path string, items int64) {
		t.Helper()
		d, err := original.Open(t.Context(), path)
		must(t, err)
		defer d.Close()
		if n, err := d.Count(t.Context()); err != nil || n != items {
			t.Errorf("the old file has %d items, %v", n, err)
		}
	}
	for name, test := range map[string]struct {
		prepare func(t *testing.T, path string)
		files   []string
	}{
		"plain": {func(*testing.T, string) {}, []string{"db", "db.original"}},
		"with a log": {func(t *testing.T, path string) {
			execute(t, path, "PRAGMA journal_mode = wal")
			must(t, os.WriteFile(path+"-shm", make([]byte, 32768), 0o644))
		}, []string{"db", "db.original"}},
		"names taken": {func(t *testing.T, path string) {
			must(t, os.WriteFile(path+".original", []byte("precious"), 0o644))
			must(t, os.Mkdir(path+".original.2", 0o755))
			must(t, os.Symlink("nowhere", path+".original.3"))
		}, []string{"db", "db.original", "db.original.2", "db.original.3", "db.original.4"}},
		"converted, and then killed": {func(t *testing.T, path string) {
			_, err := toIndex(t.Context(), path, path+unfinished, Options{})
			must(t, err)
		}, []string{"db", "db.original"}},
		"kept, and then killed": {func(t *testing.T, path string) {
			_, err := toIndex(t.Context(), path, path+unfinished, Options{})
			must(t, err)
			must(t, os.Link(path, path+".original"))
		}, []string{"db", "db.original"}},
		"renamed, and then killed": {func(t *testing.T, path string) {
			_, err := toIndex(t.Context(), path, path+unfinished, Options{})
			must(t, err)
			must(t, os.Rename(path, path+".original"))
		}, []string{"db", "db.original"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "db")
			makeOriginal(t, path, 30)
			test.prepare(t, path)
			if converted, err := InPlace(t.Context(), path, Options{}); err != nil || !converted {
				t.Fatalf("%v, %v", converted, err)
			}
			onlyFiles(t, dir, test.files...)
			want(t, path, 30)
			kept(t, filepath.Join(dir, test.files[len(test.files)-1]), 30)
			if name == "names taken" {
				if text, err := os.ReadFile(path + ".original"); err != nil || string(text) != "precious" {
					t.Errorf("the file of that name: %s, %v", text, err)
				}
			}
			// The next start has nothing to do.
			if converted, err := InPlace(t.Context(), path, Options{}); err != nil || converted {
				t.Errorf("again: %v, %v", converted, err)
			}
			want(t, path, 30)
		})
	}
}

func TestInPlaceThroughLink(t *testing.T) {
	t.Parallel()
	dir, other := t.TempDir(), t.TempDir()
	link, path := filepath.Join(dir, "db"), filepath.Join(other, "real")
	makeOriginal(t, path, 30)
	must(t, os.Symlink(path, link))
	if converted, err := InPlace(t.Context(), link, Options{}); err != nil || !converted {
		t.Fatalf("%v, %v", converted, err)
	}
	onlyFiles(t, dir, "db")
	onlyFiles(t, other, "real", "real.original")
	want(t, link, 30)
}

// TestInPlaceLeaves: other files are not converted.
func TestInPlaceLeaves(t *testing.T) {
	t.Parallel()
	for name, prepare := range map[string]func(t *testing.T, path string){
		"nothing":   func(*testing.T, string) {},
		"empty":     func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o644)) },
		"garbage":   func(t *testing.T, path string) { must(t, os.WriteFile(path, make([]byte, 5000), 0o644)) },
		"directory": func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o755)) },
		"foreign":   func(t *testing.T, path string) { execute(t, path, "CREATE TABLE cookies (id)") },
		"unfinished conversion of what was moved away": func(t *testing.T, path string) {
			other := filepath.Join(t.TempDir(), "db")
			interrupted(t, other, path, severalBatches)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			path := filepath.Join(dir, "db")
			prepare(t, path)
			before, err := os.ReadDir(dir)
			must(t, err)
			if converted, err := InPlace(t.Context(), path, Options{}); err != nil || converted {
				t.Errorf("%v, %v", converted, err)
			}
			after, err := os.ReadDir(dir)
			if err != nil || len(before) != len(after) {
				t.Errorf("%v, then %v, %v", before, after, err)
			}
		})
	}
}

// TestFileBeside: a left-over file beside a name does not become part of a new
// database.
func TestFileBeside(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from.db"), filepath.Join(dir, "to.db")
	makeOriginal(t, from, 5)
	for _, suffix := range []string{"-wal", "-journal"} {
		must(t, os.WriteFile(to+suffix, []byte("of another one"), 0o644))
		if _, err := Convert(t.Context(), from, to, Options{}); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), to+suffix) {
			t.Errorf("%s: %v", suffix, err)
		}
		must(t, os.Remove(to+suffix))
	}
	onlyFiles(t, dir, "from.db")
}

// TestInUse: a database that the original has open is not replaced.
func TestInUse(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	makeOriginal(t, path, 5)
	db, err := sql.Open("sqlite", path)
	must(t, err)
	defer db.Close()
	if _, err := db.Exec("PRAGMA journal_mode = wal; INSERT INTO tags (key, value) VALUES ('a', 'b')"); err != nil {
		t.Fatal(err)
	}
	if _, err := InPlace(t.Context(), path, Options{}); !errors.Is(err, original.ErrInUse) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(path + ".original"); err == nil {
		t.Error("it was renamed")
	}
}

// TestReplacedWhileOpened: a process that opens the database while it is being replaced
// gets the old or the new one, and never creates another.
func TestReplacedWhileOpened(t *testing.T) {
	t.Parallel()
	for range 5 {
		path := filepath.Join(t.TempDir(), "db")
		makeOriginal(t, path, 5)
		opened := make(chan error)
		for range 2 {
			go func() {
				for {
					x, err := index.Open(t.Context(), path, index.Options{})
					if err == nil {
						opened <- x.Close()
						return
					}
					if !errors.Is(err, index.ErrOriginal) {
						opened <- err
						return
					}
				}
			}()
		}
		_, err := InPlace(t.Context(), path, Options{})
		if err := errors.Join(err, <-opened, <-opened); err != nil {
			t.Fatal(err)
		}
		want(t, path, 5)
	}
}
