package main

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nar-herder/internal/testfs"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/owner"
)

// TestLostStorage: after the loss of all nars, --accept-loss claims the empty storage,
// which can then be used again.
func TestLostStorage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	if err := os.RemoveAll(p.storage); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(p.storage, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{p.args("claim-storage"), p.args("import", "--keep", filepath.Join(testdata, "published"))} {
		fail(t, args, "the index has 13", "claim-storage --accept-loss")
	}
	if out := succeed(t, p.args("claim-storage", "--accept-loss")...); !strings.Contains(out, "none of the 13 nars") || !strings.Contains(out, "13 files no longer recorded") {
		t.Errorf("claim-storage: %s", out)
	}
	p.imports(t, filepath.Join(testdata, "published"))
	succeed(t, p.args("check")...)
}

// TestMirrorReplacesOriginal starts a mirror with the database and storage of an original,
// with nars.
func TestMirrorReplacesOriginal(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	makeOriginal(t, p.database, "published")
	if out, err := exec.Command("cp", "-r", filepath.Join(testdata, "published", "nar"), p.storage).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	// The first start converts but doesn't claim the storage yet, as if it was killed
	// in between.
	for _, options := range [][]string{{"--storage-read-only"}, nil} {
		s := p.serve(t, append(options, "--log-level=INFO", "--mirror=http://127.0.0.1:1")...)
		s.stop(t, syscall.SIGTERM)
	}
	if o := ownerOf(t, p); o.Database != p.database {
		t.Errorf("the owner is %+v", o)
	}
	other := newPlace(t)
	if err := os.CopyFS(filepath.Join(other.storage, "nar"), os.DirFS(filepath.Join(testdata, "published/nar"))); err != nil {
		t.Fatal(err)
	}
	other.database = p.database
	fail(t, other.args("run-server", "--port=0", "--mirror=http://127.0.0.1:1"), "has no owner, but contains nars")
}

// TestStartBesideDump starts the server while a dump of this instance is being made.
func TestStartBesideDump(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	self := ownerOf(t, p)
	for instance, can := range map[string]bool{self.Instance: true, "OTHER": false} {
		file := filepath.Join(t.TempDir(), "dump.db")
		lock, err := owner.NewLock(file+".owner", owner.Self(instance, p.database))
		if err != nil {
			t.Fatal(err)
		}
		if can {
			p.serve(t, "--database-dump="+file).stop(t, syscall.SIGTERM)
		} else {
			fail(t, p.args("run-server", "--port=0", "--log-level=WARN", "--database-dump="+file), "--database-dump="+file, "in use")
		}
		if err := lock.Close(); err != nil {
			t.Error(err)
		}
	}
}

// begunMeanwhile is a store that creates the database when its owner is read.
type begunMeanwhile struct {
	bytestore.Store
	database string
}

func (b begunMeanwhile) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	if b.database != "" {
		if err := os.WriteFile(b.database, []byte("SQLite"), 0o644); err != nil {
			return nil, bytestore.Info{}, err
		}
	}
	return b.Store.Open(ctx, name, offset, length)
}

// TestConcurrentFirstImports: the second of two imports into a new database is not refused.
func TestConcurrentFirstImports(t *testing.T) {
	t.Parallel()
	store, err := directory.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	database := filepath.Join(t.TempDir(), "index.db")
	if err := owner.Take(t.Context(), store, owner.Self("a", database)); err != nil {
		t.Fatal(err)
	}
	if err := mayBegin(t.Context(), database, store, owner.Always); err == nil {
		t.Error("a new database was created for another instance's storage")
	}
	if err := mayBegin(t.Context(), database, begunMeanwhile{store, database}, owner.Always); err != nil {
		t.Error(err)
	}
}

// TestStartWithoutDumps starts the server in a directory where it can write neither dumps
// nor their lock.
func TestStartWithoutDumps(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	p.imports(t, filepath.Join(testdata, "published"))
	s := p.serve(t, "--database-dump="+filepath.Join(testfs.ReadOnly(t, t.TempDir()), "dump.db"))
	s.stop(t, syscall.SIGTERM)
	if !strings.Contains(s.err.String(), "can't lock") {
		t.Errorf("the log doesn't report it: %s", s.err.String())
	}
}
