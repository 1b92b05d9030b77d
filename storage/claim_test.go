package storage_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"nar-herder/internal/testlog"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/owner"
)

// lookedFor is a remote store. Looking for a file, except the first, waits for other calls.
type lookedFor struct {
	bytestore.Store
	looks  atomic.Int64
	others meeting
}

func (s *lookedFor) IsRemote() bool { return true }

func (s *lookedFor) Concurrency() int { return 8 }

func (s *lookedFor) Stat(ctx context.Context, name string) (bytestore.Info, error) {
	if s.looks.Add(1) > 1 {
		if err := s.others.wait(ctx); err != nil {
			return bytestore.Info{}, err
		}
	}
	return s.Store.Stat(ctx, name)
}

// TestClaimSamples: up to a quarter of a few nars may be missing.
func TestClaimSamples(t *testing.T) {
	t.Parallel()
	p := memoryPlace(t)
	var items []fake
	for n := range 110 {
		items = append(items, fake{n: n, content: "content"})
	}
	unstored := p.openWith(t, func(bytestore.Store) bytestore.Store { return nil })
	importAll(t, unstored, importer.Options{}, laid(t, items[:100]...))
	stored := items[100:]
	for _, item := range stored { // in this order
		importAll(t, p.openTest(t), importer.Options{}, laid(t, item))
	}
	s := p.openWith(t, func(bytes bytestore.Store) bytestore.Store {
		return &lookedFor{Store: bytes, others: newMeeting(8)}
	})
	if err := owner.IsComplete(t.Context(), s); err != nil {
		t.Errorf("no nar is missing: %v", err)
	}
	for i, remove := range []int{0, 4, 8} {
		if err := os.Remove(filepath.Join(p.store, stored[remove].name())); err != nil {
			t.Fatal(err)
		}
		err := owner.IsComplete(t.Context(), s)
		if refused := err != nil && strings.Contains(err.Error(), "lacks 3 of 10 sampled nars"); refused != (i == 2) || err != nil && !refused {
			t.Errorf("%d nars of 10 are missing: %v", i+1, err)
		}
	}
}

// TestImportInUse: an import logs once that it copies the nars of a storage or an export.
func TestImportInUse(t *testing.T) {
	t.Parallel()
	for _, marker := range []string{bytestore.OwnerName, bytestore.IdentityName, bytestore.ExportName, "else"} {
		var logged testlog.Buffer
		s := newPlace(t).openTestAs(t, nil, storage.Options{Log: slog.New(slog.NewTextHandler(&logged, nil))})
		items := []fake{{n: 1, content: "one"}, {n: 2, content: "two"}, {n: 3, content: "three"}}
		from := laid(t, items...)
		if err := os.WriteFile(filepath.Join(from, marker), []byte("x\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		importAll(t, s, importer.Options{}, from)
		want := 1
		if marker == "else" {
			want = 0
		}
		if n := strings.Count(logged.String(), from+" is a storage or an export: its nars are copied, not moved"); n != want {
			t.Errorf("%s: it is logged %d times, want %d: %s", marker, n, want, logged.String())
		}
		for _, item := range items {
			if _, err := os.Stat(filepath.Join(from, item.name())); (err == nil) != (want == 1) {
				t.Errorf("%s: a nar of it: %v", marker, err)
			}
		}
	}
}
