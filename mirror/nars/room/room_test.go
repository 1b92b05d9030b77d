package room

import (
	"context"
	"errors"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/space"
)

// TestMakeRoomElsewhere: room is made below the hard limit as well, but not for a large shortage,
// and not while that frees nothing.
func TestMakeRoomElsewhere(t *testing.T) {
	t.Parallel()
	store, err := directory.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	s := storage.New(x, store, storage.Options{})
	var log testlog.Buffer
	var asked []int64
	r := New(Options{Storage: s, Limit: -1, Log: slog.New(slog.NewTextHandler(&log, nil)), Now: time.Now, MakeRoom: func(_ context.Context, bytes int64) error {
		asked = append(asked, bytes)
		return nil
	}})
	if err := s.SetHardLimit(t.Context(), 500); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Reserve(t.Context(), 1000, true); !errors.Is(err, space.ErrLimit) || len(asked) != 1 || asked[0] < 500 {
		t.Errorf("%v, %d", err, asked)
	}
	if err := s.SetHardLimit(t.Context(), -1); err != nil {
		t.Fatal(err)
	}
	free, _, err := s.FreeSpace()
	if err != nil {
		t.Skip(err)
	}
	set := func(minimum int64) {
		t.Helper()
		if err := s.SetMinimumFree(t.Context(), minimum); err != nil {
			t.Fatal(err)
		}
	}
	set(free + 4*mostBehind)
	if _, err := r.Reserve(t.Context(), 1000, true); !errors.Is(err, space.ErrFreeSpace) || len(asked) != 1 {
		t.Errorf("%v, %d", err, asked)
	}
	set(free + mostBehind/2)
	for range 2 {
		if _, err := r.Reserve(t.Context(), 1000, true); !errors.Is(err, space.ErrFreeSpace) || len(asked) != 2 {
			t.Errorf("%v, %d", err, asked)
		}
	}
	if !strings.Contains(log.String(), "has not freed space") {
		t.Error("the log doesn't say so")
	}
}
