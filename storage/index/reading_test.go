package index

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"nar-herder/internal/rounds"
)

// openRead opens an index for reading until the end of the test.
func openRead(t testing.TB, path string) *Index {
	t.Helper()
	x, err := Open(t.Context(), path, Options{Access: Read})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// sums returns the checksums of all files of a directory. Another process computes them,
// because this one would drop its locks by closing the files.
func sums(t testing.TB, directory string) string {
	t.Helper()
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.CommandContext(t.Context(), "sha256sum")
	command.Dir = directory
	for _, entry := range entries {
		command.Args = append(command.Args, entry.Name())
	}
	out, err := command.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// wantUnchanged calls f, and asserts that the directory is unchanged.
func wantUnchanged(t *testing.T, directory string, f func()) {
	t.Helper()
	before := sums(t, directory)
	f()
	if after := sums(t, directory); after != before {
		t.Errorf("before:\n%safter:\n%s", before, after)
	}
}

// TestRead reads a database that no process has open.
func TestRead(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	wantUnchanged(t, filepath.Dir(path), func() {
		x, err := Open(t.Context(), path, Options{Access: Read})
		if err != nil {
			t.Fatal(err)
		}
		wantOldData(t, x)
		if err := x.Update(t.Context(), func(*Tx) error { return nil }); !errors.Is(err, ErrReadOnly) || !strings.Contains(err.Error(), path) {
			t.Errorf("Update: %v", err)
		}
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	if name := openRead(t, path).Instance(); name == "" || name != openAt(t, path).Instance() {
		t.Errorf("instance %q", name)
	}
}

// TestReadBesideWriter reads a database that another process writes: each commit is visible
// at once.
func TestReadBesideWriter(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	w := startWriter(t, path)
	wantUnchanged(t, filepath.Dir(path), func() { wantTotals(t, openRead(t, path), Totals{1, 1, 10}) })
	x := openRead(t, path)
	const each = 100
	for n := range int64(10) {
		w.put(t, int(1+each*n), each)
		wantTotals(t, x, Totals{1 + each*(n+1), 1 + each*(n+1), 10 * (1 + each*(n+1))})
	}
	wantUnchanged(t, filepath.Dir(path), func() { wantSound(t, openRead(t, path)) })
	w.close(t)
	wantUnchanged(t, filepath.Dir(path), func() { wantSound(t, x) })
}

// TestReadByLink reads a database by a symbolic link while another process writes it: the log
// is beside the target.
func TestReadByLink(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	w := startWriter(t, path)
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(path, link); err != nil {
		t.Fatal(err)
	}
	wantTotals(t, openRead(t, link), Totals{1, 1, 10})
	w.put(t, 1, 5)
	wantTotals(t, openRead(t, link), Totals{6, 6, 60})
	w.close(t)
}

// crashed returns a database of a killed process: its last transactions are in the log.
func crashed(t testing.TB) (path string) {
	t.Helper()
	x := openAt(t, oldDatabase(t))
	put(t, x, testNarinfo(3, 1, nil, 100))
	path = filepath.Join(t.TempDir(), filepath.Base(x.Path()))
	if out, err := exec.CommandContext(t.Context(), "cp", x.Path(), x.Path()+"-wal", x.Path()+"-shm", filepath.Dir(path)).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return path
}

func TestReadAfterCrash(t *testing.T) {
	t.Parallel()
	path := crashed(t)
	wantUnchanged(t, filepath.Dir(path), func() {
		x, err := Open(t.Context(), path, Options{Access: Read})
		if err != nil {
			t.Fatal(err)
		}
		wantTotals(t, x, Totals{3, 3, 130})
		wantSound(t, x)
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestReadLogAlone reads a log without its index, as in an incomplete copy.
func TestReadLogAlone(t *testing.T) {
	t.Parallel()
	path := crashed(t)
	if err := os.Remove(path + "-shm"); err != nil {
		t.Fatal(err)
	}
	wantUnchanged(t, filepath.Dir(path), func() {
		_, err := Open(t.Context(), path, Options{Access: Read})
		if err == nil || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "nar-herder migrate") {
			t.Errorf("%v", err)
		}
	})
	if done, err := Migrate(t.Context(), path); err != nil || done.Copy != "" {
		t.Fatalf("%+v, %v", done, err)
	}
	wantTotals(t, openRead(t, path), Totals{3, 3, 130})
}

// TestReadChanged: another process writes to a database that is read without locks.
func TestReadChanged(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	x, err := Open(t.Context(), path, Options{Access: Read})
	if err != nil {
		t.Fatal(err)
	}
	writer, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, writer, testNarinfo(3, 1, nil, 100))
	// The change is still in the log.
	wantTotals(t, x, Totals{2, 2, 30})
	if err := x.changed(); err != nil {
		t.Error(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); !errors.Is(err, ErrChanged) {
		t.Errorf("Close: %v, want ErrChanged", err)
	}
}

// TestReadWhileOthersClose opens a database while others open and close it.
func TestReadWhileOthersClose(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	ended := make(chan struct{})
	writers := rounds.Of(3)
	go func() {
		defer close(ended)
		for n := range writers {
			if out, err := helper(t, path, 10+n, 1).CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		}
	}()
	for n := 0; ; n++ {
		select {
		case <-ended:
			items := int64(2 + writers)
			wantTotals(t, openRead(t, path), Totals{items, items, 10*items + 10})
			t.Logf("opened %d times", n)
			return
		default:
		}
		x, err := Open(t.Context(), path, Options{Access: Read})
		if err != nil {
			t.Fatal(err)
		}
		if totals, err := x.Totals(t.Context()); err != nil && !errors.Is(err, ErrChanged) || err == nil && totals.StoredSize != 10*(totals.Items-2)+30 {
			t.Errorf("%+v, %v", totals, err)
		}
		if err := x.Close(); err != nil && !errors.Is(err, ErrChanged) {
			t.Error(err)
		}
	}
}

// TestReadBesideProcesses reads in two processes while two others open, write and close the
// database repeatedly. One reader opens it as often; the other one reads very often,
// because the race windows are short.
func TestReadBesideProcesses(t *testing.T) {
	t.Parallel()
	path := oldDatabase(t)
	ended := make(chan struct{})
	var readers, writers sync.WaitGroup
	for _, reads := range []string{"30 20", "1 10000"} {
		command := helper(t, path, 0, 0)
		command.Env = append(command.Env, helperReads+"="+reads)
		readers.Go(func() {
			if out, err := command.CombinedOutput(); err != nil {
				t.Errorf("%s reads: %v: %s", reads, err, out)
			}
		})
	}
	for w := range 2 {
		writers.Go(func() {
			for n := range 1000 {
				if out, err := helper(t, path, (2*n+w+1)*1000, 1+(n%5)*50).CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
				select {
				case <-ended:
					return
				default:
				}
			}
		})
	}
	readers.Wait()
	close(ended)
	writers.Wait()
}

// versionDatabase creates a database of an old schema version with the steps of that
// version. It has totals, which later versions read.
func versionDatabase(t testing.TB, version int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "db")
	c, err := connect(t.Context(), dataSource(path, defaultWriterCache))
	if err != nil {
		t.Fatal(err)
	}
	err = errors.Join(
		c.applyMigrations(t.Context(), path, 0, migrations[:version]),
		c.exec("INSERT INTO tags (key, value) VALUES ('schema', ?)", int64(version)),
		c.exec("INSERT INTO dictionaries (id, content) VALUES (?, ?)", int64(builtinID), builtinDictionary),
		c.close())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// TestOtherVersions: only Migrate changes the schema version of a database.
func TestOtherVersions(t *testing.T) {
	t.Parallel()
	for version := 1; version <= len(migrations)+1; version++ {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			want, advice := ErrOlderVersion, "nar-herder migrate"
			var path string
			switch {
			case version == len(migrations):
				return
			case version < len(migrations):
				path = versionDatabase(t, version)
			default:
				path, want, advice = oldDatabase(t), ErrNewerVersion, "run a newer nar-herder"
				x, err := open(t.Context(), path, Options{Migrate: true}, nextVersion)
				if err != nil {
					t.Fatal(err)
				}
				if err := x.Close(); err != nil {
					t.Fatal(err)
				}
			}
			wantUnchanged(t, filepath.Dir(path), func() {
				for _, access := range []Access{Create, Write, Read} {
					x, err := Open(t.Context(), path, Options{Access: access})
					if err == nil {
						x.Close()
					}
					if !errors.Is(err, want) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), advice) {
						t.Errorf("access %d: %v, want %v", access, err, want)
					}
				}
			})
		})
	}
}

// TestNothingToOpen: opening a missing or empty file is an error, and doesn't change it.
func TestNothingToOpen(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	missing, empty, bare := filepath.Join(directory, "missing"), filepath.Join(directory, "empty"), filepath.Join(directory, "bare")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	c, err := connect(t.Context(), fileName(bare))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(c.script("CREATE TABLE t (a); DROP TABLE t"), c.close()); err != nil {
		t.Fatal(err)
	}
	wantUnchanged(t, directory, func() {
		for path, want := range map[string]error{missing: fs.ErrNotExist, empty: ErrForeign, bare: ErrForeign} {
			for _, access := range []Access{Write, Read} {
				x, err := Open(t.Context(), path, Options{Access: access})
				if err == nil {
					x.Close()
				}
				if !errors.Is(err, want) || !strings.Contains(err.Error(), path) {
					t.Errorf("%s, access %d: %v, want %v", path, access, err, want)
				}
			}
			if _, err := Migrate(t.Context(), path); !errors.Is(err, want) {
				t.Errorf("Migrate %s: %v, want %v", path, err, want)
			}
			if NeedsMigration(t.Context(), path) {
				t.Errorf("%s needs a migration", path)
			}
		}
	})
}
