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
)

// stale is a store that gives what a name had before, until that is doubted.
type stale struct {
	storage.ByteStore
	before string
	doubts int
}

func (s *stale) Doubt(string) { s.doubts++ }

func (s *stale) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, storage.Info, error) {
	r, info, err := s.ByteStore.Open(ctx, name, offset, length)
	if s.doubts == 0 && !strings.HasPrefix(name, "nar-herder-") && err == nil {
		r.Close()
		info.Size = int64(len(s.before))
		return io.NopCloser(strings.NewReader(s.before[offset:])), info, nil
	}
	return r, info, err
}

// TestDoubt: a file of another size than its row says is no fault where the store
// may have given one that was replaced.
func TestDoubt(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := &stale{before: "the nar that was there before"}
	front := p.openWith(t, func(behind storage.ByteStore) storage.ByteStore {
		s.ByteStore = behind
		return s
	})
	f := fake{n: 1, content: "the nar"}
	importAll(t, front, storage.ImportOptions{}, laid(t, f))
	s.doubts = 0
	wantServed(t, front, f)
	if s.doubts != 1 {
		t.Errorf("doubted %d times", s.doubts)
	}
	// What is wrong stays so.
	if err := os.WriteFile(filepath.Join(p.store, f.name()), []byte("short"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := stored(front, f.hash(), 0); !errors.Is(err, storage.ErrDisagree) || s.doubts != 2 {
		t.Errorf("%v, doubted %d times", err, s.doubts)
	}
	if err := os.Remove(filepath.Join(p.store, f.name())); err != nil {
		t.Fatal(err)
	}
	if _, err := stored(front, f.hash(), 0); !errors.Is(err, storage.ErrDisagree) {
		t.Errorf("%v", err)
	}
}
