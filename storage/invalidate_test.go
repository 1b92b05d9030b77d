package storage_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
)

// stale is a store that returns replaced content until the name is invalidated.
type stale struct {
	bytestore.Store
	before        string
	invalidations int
}

func (s *stale) Invalidate(string) bool {
	s.invalidations++
	return true
}

func (s *stale) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	r, info, err := s.Store.Open(ctx, name, offset, length)
	if s.invalidations == 0 && !strings.HasPrefix(name, "nar-herder-") && err == nil {
		r.Close()
		info.Size = int64(len(s.before))
		return io.NopCloser(strings.NewReader(s.before[offset:])), info, nil
	}
	return r, info, err
}

// TestInvalidate: a file whose size differs from the row is not a fault if the store may
// have returned a replaced one.
func TestInvalidate(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := &stale{before: "the nar that was there before"}
	front := p.openWith(t, func(behind bytestore.Store) bytestore.Store {
		s.Store = behind
		return s
	})
	f := fake{n: 1, content: "the nar"}
	importAll(t, front, importer.Options{}, laid(t, f))
	s.invalidations = 0
	wantServed(t, front, f)
	if s.invalidations != 1 {
		t.Errorf("doubted %d times", s.invalidations)
	}
	// A wrong file is still a fault.
	if err := os.WriteFile(filepath.Join(p.store, f.name()), []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := stored(front, f.hash(), 0); !errors.Is(err, storage.ErrMismatch) || s.invalidations != 2 {
		t.Errorf("%v, doubted %d times", err, s.invalidations)
	}
	if err := os.Remove(filepath.Join(p.store, f.name())); err != nil {
		t.Fatal(err)
	}
	if _, err := stored(front, f.hash(), 0); !errors.Is(err, storage.ErrMismatch) {
		t.Errorf("%v", err)
	}
}
