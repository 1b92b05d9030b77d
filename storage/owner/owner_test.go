package owner

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"nar-herder/internal/s3server"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/s3"
)

func mounted(context.Context) error { return nil }

// eachStore runs a test with an empty directory and with an empty bucket.
func eachStore(t *testing.T, test func(*testing.T, bytestore.Store)) {
	t.Run("directory", func(t *testing.T) {
		t.Parallel()
		store, err := directory.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		test(t, store)
	})
	t.Run("bucket", func(t *testing.T) {
		t.Parallel()
		store, err := s3.Open(t.Context(), s3server.New(t).URL("nars/farm"), s3.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { store.Close() })
		test(t, store)
	})
}

// TestClaim: a storage without an owner is claimed by the policy, and by one of several
// concurrent instances.
func TestClaim(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, store bytestore.Store) {
		ctx := t.Context()
		claim := func(instance string, policy Policy) error {
			c := Claim{Store: store, Self: Self(instance, "/"+instance+".db"), Policy: policy, IsMounted: mounted}
			return c.Acquire(ctx)
		}
		if err := claim("a", Never); err == nil || errors.Is(err, storage.ErrNotOwner) || !strings.Contains(err.Error(), "claim-storage") {
			t.Errorf("a command claims: %v", err)
		}
		unmounted := errors.New("not mounted")
		c := Claim{Store: store, Self: Self("a", "/a.db"), Policy: Always, IsMounted: func(context.Context) error { return unmounted }}
		if err := c.Acquire(ctx); !errors.Is(err, unmounted) {
			t.Errorf("a storage that is not mounted: %v", err)
		}
		if _, err := Read(ctx, store); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("the storage has an owner: %v", err)
		}

		nar := "nar/lzip/" + strings.Repeat("0", 32) + "-a"
		if err := bytestore.WriteNote(ctx, store, nar, "a nar", bytestore.Staged.Commit); err != nil {
			t.Fatal(err)
		}
		err := claim("mirror", IfEmpty)
		if !errors.Is(err, storage.ErrNotOwner) || !strings.Contains(err.Error(), "claim-storage") || !strings.Contains(err.Error(), "--storage-read-only") {
			t.Errorf("a mirror claims a storage with nars: %v", err)
		}
		if err := store.Remove(ctx, nar); err != nil {
			t.Fatal(err)
		}
		var won atomic.Int64
		var claiming sync.WaitGroup
		for _, instance := range strings.Fields("a b c d e f g h") {
			claiming.Go(func() {
				switch err := claim(instance, IfEmpty); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, storage.ErrNotOwner):
					t.Error(err)
				}
			})
		}
		claiming.Wait()
		if won.Load() != 1 {
			t.Errorf("%d of 8 have claimed the storage", won.Load())
		}
		found, err := Read(ctx, store)
		if err != nil {
			t.Fatal(err)
		}
		if err := claim(found.Instance, Never); err != nil {
			t.Errorf("the owner: %v", err)
		}
		other := Claim{Store: store, Self: Self("z", "/z.db"), Policy: Always, IsMounted: mounted}
		if err := other.Acquire(ctx); !errors.Is(err, storage.ErrNotOwner) || !strings.Contains(err.Error(), "--yes="+found.Instance) {
			t.Errorf("another: %v", err)
		}
		if err := errors.Join(Take(ctx, store, other.Self), other.Check(ctx)); err != nil {
			t.Errorf("taken: %v", err)
		}
		if err := claim(found.Instance, Always); !errors.Is(err, storage.ErrNotOwner) {
			t.Errorf("the former owner: %v", err)
		}
	})
}

// TestOldFile: its owner reads and completes the owner file of an earlier version.
func TestOldFile(t *testing.T) {
	t.Parallel()
	eachStore(t, func(t *testing.T, store bytestore.Store) {
		if err := bytestore.WriteNote(t.Context(), store, bytestore.OwnerName, "OLD", bytestore.Staged.Commit); err != nil {
			t.Fatal(err)
		}
		for instance, owns := range map[string]bool{"OTHER": false, "OLD": true} {
			c := Claim{Store: store, Self: Self(instance, "/new.db"), Policy: IfEmpty, IsMounted: mounted}
			if err := c.Acquire(t.Context()); (err == nil) != owns {
				t.Errorf("%s: %v", instance, err)
			}
		}
		if found, err := Read(t.Context(), store); err != nil || found.Instance != "OLD" || found.Database != "/new.db" || found.Since.IsZero() {
			t.Errorf("it is now %+v, %v", found, err)
		}
		for _, text := range []string{"two words", "{}", "{"} {
			err := bytestore.WriteNote(t.Context(), store, bytestore.OwnerName, text, bytestore.Staged.Commit)
			if err != nil {
				t.Fatal(err)
			}
			if found, err := Read(t.Context(), store); err == nil || errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%q: %+v, %v", text, found, err)
			}
		}
	})
}

// TestCopies: of two databases with the same id, only the one in the owner file may write. The
// error of the other names both solutions.
func TestCopies(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	store, err := directory.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	database, link := filepath.Join(dir, "a.db"), filepath.Join(dir, "link.db")
	if err := errors.Join(os.WriteFile(database, nil, 0o644), os.Symlink(database, link)); err != nil {
		t.Fatal(err)
	}
	first := Self("a", database)
	first.Machine, first.Host = "m1", "old-name"
	if err := Take(t.Context(), store, first); err != nil {
		t.Fatal(err)
	}
	for what, test := range map[string]struct {
		machine, database string
		owns              bool
	}{
		"itself":          {"m1", database, true},
		"by another name": {"m1", link, true},
		"in a container":  {"", database, true},
		"another path":    {"m1", filepath.Join(dir, "b.db"), false},
		"another machine": {"m2", database, false},
	} {
		c := Claim{Store: store, Self: Self("a", test.database), IsMounted: mounted}
		c.Self.Machine = test.machine
		err := c.Acquire(t.Context())
		if test.owns && err != nil {
			t.Errorf("%s: %v", what, err)
		} else if !test.owns && (!errors.Is(err, storage.ErrNotOwner) || !strings.Contains(err.Error(), "container") || !strings.Contains(err.Error(), "new-identity") || !strings.Contains(err.Error(), "claim-storage --yes=a")) {
			t.Errorf("%s: %v, want ErrNotOwner with both solutions", what, err)
		}
	}
}

// TestMachine: the id equals that in earlier owner files, with or without a newline in
// /etc/machine-id.
func TestMachine(t *testing.T) {
	t.Parallel()
	const id, want = "0123456789abcdef0123456789abcdef", "054509b6f0bdef4e922eaa00179f1a18"
	for text, want := range map[string]string{id: want, id + "\n": want, "": "", "uninitialized\n": "", id + "0": ""} {
		if got := derive(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// TestLockShared: the group of the directory may write to a new lock file. An existing file is
// not changed: it may be a nar that another user has renamed.
func TestLockShared(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	existing := filepath.Join(dir, "existing")
	if err := errors.Join(os.Chmod(dir, 0o770), os.WriteFile(existing, nil, 0o604)); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]os.FileMode{filepath.Join(dir, "new"): 0o060, existing: 0} {
		l, err := NewLock(name, Self("a", "/a.db"))
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(name)
		if err := errors.Join(err, l.Close()); err != nil {
			t.Fatal(err)
		}
		if got := info.Mode() & 0o060; got != want {
			t.Errorf("%s has mode %v", name, info.Mode())
		}
	}
}

// TestLock: only one process and one instance at a time.
func TestLock(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	lock := func(instance string) (*Lock, *InUseError) {
		t.Helper()
		l, err := NewLock(path, Self(instance, "/"+instance+".db"))
		var used *InUseError
		if err != nil && !errors.As(err, &used) {
			t.Fatal(err)
		}
		return l, used
	}
	first, _ := lock("a")
	if err := first.SetAddress("127.0.0.1:8734"); err != nil {
		t.Fatal(err)
	}
	for _, instance := range []string{"a", "b", ""} {
		if _, used := lock(instance); used == nil || !used.IsRunning || used.PID != os.Getpid() || used.Address != "127.0.0.1:8734" || used.Instance != "a" {
			t.Errorf("%s: %+v", instance, used)
		}
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	if _, used := lock("b"); used == nil || used.IsRunning || !strings.Contains(used.Error(), path) {
		t.Errorf("another instance: %+v", used)
	}
	again, used := lock("a")
	if used != nil {
		t.Fatal(used)
	}
	again.Close()
	renamed, err := NewLock(path, Self("c", "/a.db"))
	if err != nil {
		t.Fatalf("a new id in the same database: %v", err)
	}
	renamed.Close()
	// As in a storage of an earlier version.
	for text, want := range map[string]bool{"a\n": true, "b\n": false, "not a lock file": false} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		l, err := NewLock(path, Self("a", "/a.db"))
		if (err == nil) != want {
			t.Errorf("%q: %v", text, err)
		}
		if err == nil {
			l.Close()
		}
	}
}
