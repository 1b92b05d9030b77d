package storage_test

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/internal/testfs"
	"nar-herder/mirror/apply"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// remote is a remote store. It keeps only the sizes of large files, and records when files
// are committed, and by which deadline.
type remote struct {
	bytestore.Store
	shows func(ctx context.Context, name string) error

	mu    sync.Mutex
	files map[string]bytestore.Info
}

func (r *remote) IsRemote() bool { return true }

func (r *remote) Concurrency() int { return 4 }

func (r *remote) Stat(ctx context.Context, name string) (bytestore.Info, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if info, ok := r.files[name]; ok {
		return info, nil
	}
	return r.Store.Stat(ctx, name)
}

func (r *remote) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	if !strings.HasPrefix(name, "nar/") {
		return r.Store.Stage(ctx, name, from, size)
	}
	return &remoteStaged{r: r, info: bytestore.Info{Name: name, Size: size, Usage: size, Tag: rand.Text()}}, nil
}

type remoteStaged struct {
	r    *remote
	info bytestore.Info
	done bool
}

func (s *remoteStaged) Commit(ctx context.Context) error {
	if !s.done {
		if err := s.r.shows(ctx, s.info.Name); err != nil {
			return err
		}
		s.done = true
		s.r.mu.Lock()
		defer s.r.mu.Unlock()
		s.r.files[s.info.Name] = s.info
	}
	return nil
}

func (s *remoteStaged) CommitNew(ctx context.Context) error {
	if _, err := s.r.Stat(ctx, s.info.Name); err == nil {
		return fs.ErrExist
	}
	return s.Commit(ctx)
}

func (*remoteStaged) Abort() {}

func (r *remote) Remove(ctx context.Context, name string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.files[name]; ok {
		delete(r.files, name)
		return nil
	}
	return r.Store.Remove(ctx, name)
}

// sparse writes an item with a sparse nar of that size, and returns the item.
func sparse(t *testing.T, directory string, f fake, size int64) fake {
	t.Helper()
	f.claim = size
	lay(t, directory, f)
	if err := os.Truncate(filepath.Join(directory, f.name()), size); err != nil {
		t.Fatal(err)
	}
	return f
}

// TestLargeFiles: the index is not locked while a remote server joins the parts of large
// files, and many small files are not committed under one lock for longer than other
// processes wait.
func TestLargeFiles(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	probe, err := sql.Open("sqlite", p.database)
	if err != nil {
		t.Fatal(err)
	}
	defer probe.Close()
	probe.SetMaxOpenConns(1)
	var mu sync.Mutex
	locked, unlocked := 0, 0
	var longest time.Duration
	r := &remote{files: make(map[string]bytestore.Info)}
	r.shows = func(ctx context.Context, name string) error {
		mu.Lock()
		defer mu.Unlock()
		if _, err := probe.Exec("BEGIN IMMEDIATE"); err == nil {
			_, err = probe.Exec("ROLLBACK")
			if unlocked++; err != nil {
				t.Error(err)
			}
			return nil
		}
		locked++
		if end, ok := ctx.Deadline(); ok {
			longest = max(longest, time.Until(end))
		} else {
			t.Errorf("%s is shown without a deadline", name)
		}
		return nil
	}
	s := p.openWith(t, func(bytes bytestore.Store) bytestore.Store {
		r.Store = bytes
		return r
	})
	const large = 1 << 30
	source := t.TempDir()
	sparse(t, source, fake{n: 1}, large)
	wantOutcomes(t, importAll(t, s, importer.Options{Keep: true}, source), "1 added")
	if locked != 0 || unlocked != 1 {
		t.Errorf("new: shown %d times with the lock held, %d times without", locked, unlocked)
	}
	source = t.TempDir()
	sparse(t, source, fake{n: 1, other: true}, large)
	wantOutcomes(t, importAll(t, s, importer.Options{Keep: true, Replace: true}, source), "1 replaced")
	if locked != 0 || unlocked != 2 {
		t.Errorf("replaced: shown %d times with the lock held, %d times without", locked, unlocked)
	}
	if n := noted(t, p); n != 0 {
		t.Errorf("%d files are noted as being replaced", n)
	}
	source = t.TempDir()
	for n := 2; n < 10; n++ {
		sparse(t, source, fake{n: n}, large/2-1)
	}
	wantOutcomes(t, importAll(t, s, importer.Options{Keep: true}, source), "8 added")
	// Like a mirror's download.
	item := fake{n: 20, claim: large}
	wantOutcomes(t, importAll(t, p.openIndexOnly(t), importer.Options{}, laid(t, item)), "1 added")
	row, err := s.Item(t.Context(), item.hash())
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(large); err != nil {
		t.Fatal(err)
	}
	if err := s.Receive(t.Context(), row, 0, file); err != nil || locked != 8 || unlocked != 3 {
		t.Errorf("received: %v, shown %d times with the lock held, %d times without", err, locked, unlocked)
	}
	const othersWait = time.Minute
	if locked != 8 || longest >= othersWait {
		t.Errorf("small ones: %d are shown with the lock held, for up to %v", locked, longest)
	}
	wantFindings(t, s)
}

// TestLargeFailed: a large file that was committed before its transaction is deleted if
// that fails for good.
func TestLargeFailed(t *testing.T) {
	t.Parallel()
	const large = 1 << 30
	open := func(t *testing.T) (*storage.Storage, *index.Index, *remote) {
		p := newPlace(t)
		p.database = filepath.Join(testfs.Small(t, 8<<20), "db")
		r := &remote{files: make(map[string]bytestore.Info), shows: func(context.Context, string) error { return nil }}
		s := p.openWith(t, func(bytes bytestore.Store) bytestore.Store {
			r.Store = bytes
			return r
		})
		_, x := p.openAt(t, nil)
		return s, x, r
	}
	wantNone := func(t *testing.T, r *remote, shown int) {
		t.Helper()
		if len(r.files) != 0 || shown != 1 {
			t.Errorf("%d large files are left, after %d were shown", len(r.files), shown)
		}
	}
	t.Run("a reference goes", func(t *testing.T) {
		s, _, r := open(t)
		reference := fake{n: 2, content: "a reference"}
		wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, reference)), "1 added")
		source, shown := t.TempDir(), 0
		f := sparse(t, source, fake{n: 1, refs: []int{2}}, large)
		r.shows = func(ctx context.Context, _ string) error {
			shown++
			_, err := s.Remove(ctx, reference.hash())
			return err
		}
		result := importer.New(s).Add(t.Context(), &importer.Addition{Narinfo: f.parsed(), Directories: []string{source}, Keep: true, WithReferences: true})
		if result.Outcome != importer.Failed {
			t.Error(result.Outcome)
		}
		wantNone(t, r, shown)
	})
	t.Run("the database is full", func(t *testing.T) {
		s, x, r := open(t)
		source, shown := t.TempDir(), 0
		sparse(t, source, fake{n: 1}, large)
		r.shows = func(context.Context, string) error {
			shown++
			useReserve(t, x)
			return nil
		}
		wantOutcomes(t, importAll(t, s, importer.Options{Keep: true}, source), "1 failed")
		wantNone(t, r, shown)
	})
	t.Run("another of its batch fails", func(t *testing.T) {
		s, _, r := open(t)
		source, shown := t.TempDir(), 0
		// They are written together, because they refer to each other.
		f := sparse(t, source, fake{n: 1, refs: []int{2}}, large)
		lay(t, source, fake{n: 2, content: "small", refs: []int{1}})
		r.shows = func(_ context.Context, name string) error {
			if name != f.name() {
				return errFault
			}
			shown++
			return nil
		}
		wantOutcomes(t, importAll(t, s, importer.Options{Keep: true, WithReferences: true}, source), "2 failed")
		wantNone(t, r, shown)
	})
	t.Run("received", func(t *testing.T) {
		s, x, r := open(t)
		item := fake{n: 1, claim: large}
		if _, err := apply.Changes(t.Context(), s, []apply.Change{{At: time.Now(), Narinfo: item.parsed()}}, apply.Options{}); err != nil {
			t.Fatal(err)
		}
		row, err := s.Item(t.Context(), item.hash())
		if err != nil {
			t.Fatal(err)
		}
		file, err := os.Create(filepath.Join(t.TempDir(), "spool"))
		if err != nil {
			t.Fatal(err)
		}
		defer file.Close()
		if err := file.Truncate(large); err != nil {
			t.Fatal(err)
		}
		shown := 0
		r.shows = func(context.Context, string) error {
			shown++
			useReserve(t, x)
			return nil
		}
		if err := s.Receive(t.Context(), row, 0, file); !errors.Is(err, index.ErrFull) {
			t.Errorf("%v, want ErrFull", err)
		}
		wantNone(t, r, shown)
	})
}
