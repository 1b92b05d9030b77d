package storage_test

import (
	"context"
	"io"
	"iter"
	"sync"
	"testing"
	"time"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
)

// distantStore is a remote store: calls that change it wait for others, up to the size of
// meet.
type distantStore struct {
	bytestore.Store
	commits, removals meeting
	listed            int
}

// meeting blocks calls until so many have arrived once.
type meeting struct {
	mu   sync.Mutex
	want int
	come int
	all  chan struct{}
}

func newMeeting(want int) meeting { return meeting{want: want, all: make(chan struct{})} }

func (m *meeting) wait(ctx context.Context) error {
	m.mu.Lock()
	if m.come++; m.come == m.want {
		close(m.all)
	}
	m.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	select {
	case <-m.all:
		return nil
	case <-ctx.Done():
		return ctx.Err() // they come one after the other
	}
}

func (s *distantStore) IsRemote() bool { return true }

func (s *distantStore) Concurrency() int { return 8 }

func (s *distantStore) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	staged, err := s.Store.Stage(ctx, name, from, size)
	if err != nil {
		return staged, err
	}
	return distantStaged{staged, s}, nil
}

type distantStaged struct {
	bytestore.Staged
	store *distantStore
}

func (s distantStaged) Commit(ctx context.Context) error {
	if err := s.store.commits.wait(ctx); err != nil {
		return err
	}
	return s.Staged.Commit(ctx)
}

func (s *distantStore) Remove(ctx context.Context, name string) error {
	if err := s.removals.wait(ctx); err != nil {
		return err
	}
	return s.Store.Remove(ctx, name)
}

func (s *distantStore) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	s.listed++
	return s.Store.List(ctx)
}

// TestRemoteConcurrency: for a remote store, many calls run concurrently, and stored files are found
// without a listing.
func TestRemoteConcurrency(t *testing.T) {
	t.Parallel()
	const count = 20
	distant := &distantStore{commits: newMeeting(4), removals: newMeeting(4)}
	s := newPlace(t).openWith(t, func(bytes bytestore.Store) bytestore.Store {
		distant.Store = bytes
		return distant
	})
	var items []fake
	var size int64
	for n := range count {
		items = append(items, fake{n: n, content: "content"})
		size += int64(len("content"))
	}
	if err := s.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, _, err := s.Usage(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	importAll(t, s, importer.Options{}, laid(t, items...))
	for _, item := range items {
		wantServed(t, s, item)
	}
	usage := func() int64 {
		usage, _, err := s.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return usage - before
	}
	if got := usage(); got != size {
		t.Errorf("the usage is %d bytes, want %d", got, size)
	}
	removals, err := s.RemoveAll(t.Context(), hashesOf(items), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, removal := range removals {
		if removal.Err != nil || removal.Bytes != int64(len("content")) {
			t.Errorf("%+v", removal)
		}
	}
	if got := usage(); got != 0 || distant.listed != 1 {
		t.Errorf("%d bytes are left, %d listings; want none, and the one of the survey", got, distant.listed)
	}
	wantFindings(t, s)
}
