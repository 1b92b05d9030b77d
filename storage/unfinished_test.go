package storage_test

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/unfinished"
)

// unfinishedStore is a directory store that also has unfinished uploads.
type unfinishedStore struct {
	bytestore.Store
	folder string // of the directory

	mu       sync.Mutex
	refusal  error                // of writes
	left     map[string]time.Time // when the last part came
	listings int
	listErr  error
	errs     map[string]error // of removals
}

func (s *unfinishedStore) ListUnfinished(_ context.Context, before time.Time) iter.Seq2[bytestore.Info, error] {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listings++
	var infos []bytestore.Info
	for name, at := range s.left {
		if at.Before(before) {
			infos = append(infos, bytestore.Info{Name: name, ModTime: at, Temporary: true})
		}
	}
	err := s.listErr
	return func(yield func(bytestore.Info, error) bool) {
		for _, info := range infos {
			if !yield(info, nil) {
				return
			}
		}
		if err != nil {
			yield(bytestore.Info{}, err)
		}
	}
}

func (s *unfinishedStore) mayWrite(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.refusal
}

func (s *unfinishedStore) Remove(ctx context.Context, name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.left[name]; !ok {
		return s.Store.Remove(ctx, name)
	}
	if err := s.errs[name]; err != nil {
		return err
	}
	delete(s.left, name)
	return nil
}

func (s *unfinishedStore) add(count int, at time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for range count {
		s.left[fmt.Sprintf("unfinished/%d", len(s.left))] = at
	}
}

// count returns how many are left, and how often they were listed.
func (s *unfinishedStore) count() (left, listings int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.left), s.listings
}

// openUnfinished opens a storage with unfinished uploads, and returns its log.
func openUnfinished(t *testing.T) (*storage.Storage, *unfinishedStore, *bytes.Buffer) {
	t.Helper()
	p := newPlace(t)
	behind, err := directory.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { behind.Close() })
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	store := &unfinishedStore{Store: behind, folder: p.store, left: map[string]time.Time{}, errs: map[string]error{}}
	log := new(bytes.Buffer)
	s := storage.New(x, store, storage.Options{Log: slog.New(slog.NewTextHandler(log, nil)), MayWrite: store.mayWrite})
	return s, store, log
}

// TestRemoveUnfinished: the owner removes uploads that are a day old, a few per minute, and
// lists them once an hour.
func TestRemoveUnfinished(t *testing.T) {
	t.Parallel()
	s, store, log := openUnfinished(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		store.add(7, time.Now().Add(-25*time.Hour))
		store.add(1, time.Now().Add(-23*time.Hour-30*time.Minute))
		done := make(chan struct{})
		go func() { unfinished.Run(ctx, s); close(done) }()
		for minute, want := range []int{7, 4, 1} {
			synctest.Wait()
			if left, _ := store.count(); left != want {
				t.Errorf("after %d minutes %d are left, want %d", minute, left, want)
			}
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		if left, listings := store.count(); left != 1 || listings != 1 {
			t.Errorf("%d are left after %d listings, want the young one after one", left, listings)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if left, listings := store.count(); left != 0 || listings != 2 {
			t.Errorf("after an hour %d are left after %d listings, want none after two", left, listings)
		}
		// However many there are, listings and removals stay few.
		store.add(1000, time.Now().Add(-25*time.Hour))
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if left, listings := store.count(); left > 600 || left < 1 || listings > 13 {
			t.Errorf("after ten hours %d are left after %d listings", left, listings)
		}
		cancel()
		<-done
		if text := log.String(); strings.Contains(text, "level=WARN") {
			t.Errorf("logged: %s", text)
		}
	})
}

// TestRemoveUnfinishedFails: a failure is logged once, and removals continue.
func TestRemoveUnfinishedFails(t *testing.T) {
	t.Parallel()
	s, store, log := openUnfinished(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		store.add(10, time.Now().Add(-25*time.Hour))
		store.errs["unfinished/3"], store.errs["unfinished/5"] = errFault, errFault
		go func() { unfinished.Run(ctx, s); close(done) }()
		// Later, while the goroutine sleeps, the test may read the log.
		warnings := func(after time.Duration) int {
			time.Sleep(after)
			synctest.Wait()
			return strings.Count(log.String(), "level=WARN")
		}
		if n := warnings(100 * time.Hour); n != 1 {
			t.Errorf("%d warnings, want one: %s", n, log)
		}
		if left, _ := store.count(); left != 2 {
			t.Errorf("%d are left, want the two that can't be removed", left)
		}
		store.mu.Lock()
		clear(store.errs)
		store.mu.Unlock()
		if n := warnings(2 * time.Hour); n != 1 {
			t.Errorf("%d warnings, want no more than the first: %s", n, log)
		}
		if left, _ := store.count(); left != 0 {
			t.Errorf("%d are left", left)
		}
		store.mu.Lock()
		store.listErr = errFault
		store.mu.Unlock()
		store.add(1, time.Now().Add(-25*time.Hour))
		if n := warnings(10 * time.Hour); n != 2 {
			t.Errorf("%d warnings, want one of the listing: %s", n, log)
		}
		if left, _ := store.count(); left != 0 {
			t.Errorf("%d of the listed uploads are left", left)
		}
		cancel()
		<-done
	})
}

// TestRemoveUnfinishedOfOthers: only the owner of a byte store lists or removes uploads.
func TestRemoveUnfinishedOfOthers(t *testing.T) {
	t.Parallel()
	for what, refusal := range map[string]error{"another's": storage.ErrNotOwner, "unknown": errFault} {
		s, store, _ := openUnfinished(t)
		store.refusal = refusal
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan struct{})
			store.add(3, time.Now().Add(-25*time.Hour))
			go func() { unfinished.Run(ctx, s); close(done) }()
			time.Sleep(10 * time.Hour)
			synctest.Wait()
			if left, listings := store.count(); left != 3 || listings != 0 {
				t.Errorf("%s: %d are left after %d listings, want all three after none", what, left, listings)
			}
			cancel()
			<-done
		})
	}
}

// TestRemoveUnfinishedTaken: an instance that loses the byte store to another stops.
func TestRemoveUnfinishedTaken(t *testing.T) {
	t.Parallel()
	s, store, _ := openUnfinished(t)
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		store.add(3, time.Now().Add(-25*time.Hour))
		go func() { unfinished.Run(ctx, s); close(done) }()
		synctest.Wait()
		store.mu.Lock()
		store.refusal = storage.ErrNotOwner
		store.mu.Unlock()
		time.Sleep(10 * time.Hour)
		synctest.Wait()
		if left, listings := store.count(); left != 2 || listings != 1 {
			t.Errorf("%d are left after %d listings, want two after one", left, listings)
		}
		cancel()
		<-done
	})
}
