package storage_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// openAt opens the storage of a place with a clock, until the test's end.
func (p place) openAt(t testing.TB, now func() time.Time) (*storage.Storage, *index.Index) {
	t.Helper()
	bytes, err := directory.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), bytes.Close()); err != nil {
			t.Error(err)
		}
	})
	return storage.New(x, bytes, storage.Options{Now: now}), x
}

// clock is a clock that a test moves. With a step, it advances each time it is read.
type clock struct {
	mu   sync.Mutex
	now  time.Time
	step time.Duration
}

func newClock() *clock { return &clock{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)} }

func (c *clock) read() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(c.step)
	return c.now
}

// set sets the clock, and gives it a step.
func (c *clock) set(on, step time.Duration) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now, c.step = c.now.Add(on), step
	return c.now
}

func TestRemoveAll(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s, x := p.openAt(t, nil)
	items := many(2*storage.BatchSize+20, func(f *fake) { f.extra = []fake{{kind: "zstd", content: "zstd"}} })
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, items...)), fmt.Sprint(len(items), " added"))
	watcher, err := x.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()

	// If the guard refuses, nothing changes.
	refusal := errors.New("no")
	for _, step := range []func(context.Context, []narinfo.PathHash, func(*index.Tx) error) ([]storage.Removal, error){s.RemoveAll, s.WithdrawAll} {
		if removals, err := step(t.Context(), hashesOf(items), func(*index.Tx) error { return refusal }); !errors.Is(err, refusal) || removals != nil {
			t.Errorf("%v, %v", removals, err)
		}
	}
	for _, f := range items[:3] {
		wantServed(t, s, f)
	}

	// An unknown item does not block the others. One that was withdrawn is removed as
	// well. Each is published once.
	if _, err := s.WithdrawAll(t.Context(), hashesOf(items[:1]), nil); err != nil {
		t.Fatal(err)
	}
	goes := append([]fake{{n: 9999}}, items[:len(items)-1]...)
	removals, err := s.RemoveAll(t.Context(), hashesOf(goes), nil)
	if err != nil || len(removals) != len(goes) {
		t.Fatalf("%d results, %v", len(removals), err)
	}
	for n, r := range removals {
		if n == 0 {
			if !errors.Is(r.Err, storage.ErrNotFound) || r.Bytes != 0 {
				t.Errorf("an item that is not there: %+v", r)
			}
			continue
		}
		if want := int64(len(goes[n].content) + 4); r.Err != nil || r.Bytes != want || r.StorePath != goes[n].path() || r.WithdrawnAt.IsZero() != (n != 1) {
			t.Errorf("item %d: %+v, want %d bytes", goes[n].n, r, want)
		}
	}
	told := make(map[narinfo.PathHash]int)
	changes, complete, err := watcher.Poll()
	if err != nil || !complete {
		t.Fatal(complete, err)
	}
	for _, change := range changes {
		if change.Kind == index.Removed {
			told[change.Hash]++
		}
	}
	for _, f := range items[:len(items)-1] {
		if told[f.hash()] != 1 {
			t.Errorf("the removal of item %d is published %d times", f.n, told[f.hash()])
		}
		if !gone(filepath.Join(p.store, f.name())) {
			t.Errorf("the nar of item %d is left", f.n)
		}
	}
	wantServed(t, s, items[len(items)-1])
	wantFindings(t, s)
}

// TestRemoveAllElsewhere: the index is opened without the storage that has the nars.
func TestRemoveAllElsewhere(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	f := fake{n: 1, content: "nar"}
	s := p.openTest(t)
	importAll(t, s, importer.Options{}, laid(t, f))
	removals, err := p.openIndexOnly(t).RemoveAll(t.Context(), []narinfo.PathHash{f.hash()}, nil)
	if err != nil || !errors.Is(removals[0].Err, storage.ErrElsewhere) {
		t.Errorf("%+v, %v", removals, err)
	}
	wantServed(t, s, f)
	if _, err := s.WithdrawAll(t.Context(), []narinfo.PathHash{f.hash()}, nil); err != nil {
		t.Fatal(err)
	}
	if freed, err := deletion.RemoveWithdrawn(t.Context(), p.openIndexOnly(t), time.Now().Add(48*time.Hour)); freed.Items != 0 || !errors.Is(err, storage.ErrElsewhere) {
		t.Errorf("%+v, %v", freed, err)
	}
	if content, err := stored(s, f.hash(), 0); err != nil || content != f.content {
		t.Errorf("%q, %v", content, err)
	}
}

// TestRemoveFaults: on a disk where some files can't be deleted, all rows and the other
// files are deleted, and the errors name the remaining files.
func TestRemoveFaults(t *testing.T) {
	t.Parallel()
	for _, mode := range []faultMode{once, dead} {
		for at := int(mode); ; at += stride {
			p := memoryPlace(t)
			faulty := &faultStore{mode: mode, at: -1}
			s, closeAll, err := p.open(func(bytes bytestore.Store) bytestore.Store {
				faulty.Directory = unwrap(bytes)
				return faulty
			})
			if err != nil {
				t.Fatal(err)
			}
			items := many(4, nil)
			importAll(t, s, importer.Options{}, laid(t, items...))
			faulty.mu.Lock()
			faulty.steps, faulty.at = 0, at
			faulty.mu.Unlock()
			removals, err := s.RemoveAll(t.Context(), hashesOf(items), nil)
			if err != nil {
				t.Fatal(err)
			}
			reached := faulty.steps > at
			failed := 0
			for n, r := range removals {
				if r.Err == nil {
					if name := items[n].name(); !gone(filepath.Join(p.store, name)) {
						t.Errorf("%v at %d: %s is left, without an error", mode, at, name)
					}
					continue
				}
				failed++
				if !r.Left || !errors.Is(r.Err, errFault) || !strings.Contains(r.Err.Error(), p.store) {
					t.Errorf("%v at %d: %+v", mode, at, r)
				}
			}
			// The last two steps are of the flush, which is for all files.
			// The first two read the owner, which is repeated.
			first := mode == once && at < 2
			if reached != (failed > 0) && !first || mode == once && failed != 1 && failed != len(items) && reached && !first {
				t.Errorf("%v at %d: reached %v, %d failed", mode, at, reached, failed)
			}
			faulty.mu.Lock()
			faulty.at = -1
			faulty.mu.Unlock()
			for _, f := range items {
				if _, err := s.Item(t.Context(), f.hash()); !errors.Is(err, storage.ErrNotFound) {
					t.Errorf("%v at %d: item %d: %v", mode, at, f.n, err)
				}
			}
			wantOnlyUnreferenced(t, s)
			if err := closeAll(); err != nil {
				t.Error(err)
			}
			if !reached || t.Failed() {
				break
			}
		}
	}
}

// TestRemoveAllWhileImporting: items are removed in batches while they are imported. Row
// and bytes always match.
func TestRemoveAllWhileImporting(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	items := many(60, nil)
	source := laid(t, items...)
	importer := startHelper(t, p, "keep", source)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		importer.end(t)
	}()
	for n, running := 0, true; running; n++ {
		select {
		case <-ended:
			running = false
		default:
		}
		var err error
		var removals []storage.Removal
		if n%2 == 0 {
			removals, err = s.RemoveAll(t.Context(), hashesOf(items), nil)
		} else {
			removals, err = s.WithdrawAll(t.Context(), hashesOf(items[:30]), nil)
			if err == nil {
				_, err = deletion.RemoveWithdrawn(t.Context(), s, time.Now().Add(48*time.Hour))
			}
		}
		for _, r := range removals {
			if r.Err != nil && !errors.Is(r.Err, storage.ErrNotFound) {
				t.Error(r.Err)
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	wantFindings(t, s)
	for item, err := range s.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		n := slices.IndexFunc(items, func(f fake) bool { return f.hash() == item.Hash })
		if item.WithdrawnAt.IsZero() {
			wantServed(t, s, items[n])
		}
	}
}

func TestWithdrawAll(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	clock := newClock()
	s, _ := p.openAt(t, clock.read)
	items := many(3, nil)
	importAll(t, s, importer.Options{}, laid(t, items...))
	first := clock.read()
	if _, err := s.WithdrawAll(t.Context(), hashesOf(items[:1]), nil); err != nil {
		t.Fatal(err)
	}
	now := clock.set(time.Hour, 0)
	removals, err := s.WithdrawAll(t.Context(), hashesOf(append(items[:2:2], fake{n: 99})), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !removals[0].WithdrawnAt.Equal(first) || removals[0].Err != nil {
		t.Errorf("one that was withdrawn before: %+v", removals[0])
	}
	if !removals[1].WithdrawnAt.IsZero() || removals[1].Err != nil || removals[1].Bytes != int64(len(items[1].content)) {
		t.Errorf("one that was not: %+v", removals[1])
	}
	if !errors.Is(removals[2].Err, storage.ErrNotFound) {
		t.Errorf("one that is not there: %+v", removals[2])
	}
	// They are hidden from clients, and their nars still exist.
	for n, f := range items {
		_, err := s.Text(t.Context(), f.hash())
		if (n < 2) != errors.Is(err, storage.ErrNotFound) {
			t.Errorf("item %d: %v", n, err)
		}
		if content, err := stored(s, f.hash(), 0); err != nil || content != f.content {
			t.Errorf("the nar of item %d: %q, %v", n, content, err)
		}
	}
	const grace = narinfo.UnadvertisedTTL + time.Second
	for _, step := range []struct {
		until time.Time
		items int
	}{{first.Add(-time.Millisecond), 0}, {first, 1}, {now.Add(-time.Millisecond), 0}, {now, 1}, {now.Add(time.Hour), 0}} {
		freed, err := deletion.RemoveWithdrawn(t.Context(), s, step.until.Add(grace))
		if err != nil || freed.Items != step.items || (freed.Size > 0) != (step.items > 0) {
			t.Errorf("until %v: %+v, %v", step.until, freed, err)
		}
	}
	wantFindings(t, s)
}

// TestSlowWithdrawal: a withdrawal takes so long that clients get the narinfos until long
// after it began.
func TestSlowWithdrawal(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	clock := newClock()
	s, x := p.openAt(t, clock.read)
	items := many(2, nil)
	importAll(t, s, importer.Options{}, laid(t, items...))
	early := clock.read()
	if _, err := s.WithdrawAll(t.Context(), hashesOf(items[:1]), nil); err != nil {
		t.Fatal(err)
	}
	clock.set(0, 20*time.Second)
	if _, err := s.WithdrawAll(t.Context(), hashesOf(items), nil); err != nil {
		t.Fatal(err)
	}
	for n, want := range []time.Time{early, clock.set(0, 20*time.Second)} {
		item, err := s.Item(t.Context(), items[n].hash())
		if err != nil || !item.WithdrawnAt.Equal(want) || !item.DeleteAfter.Equal(want.Add(narinfo.UnadvertisedTTL+time.Second)) {
			t.Errorf("item %d: withdrawn at %v, to be deleted after %v, want %v, %v", n, item.WithdrawnAt, item.DeleteAfter, want, err)
		}
	}

	// The same for withdrawals by a criterion.
	f := fake{n: 7, content: "nar"}
	importAll(t, s, importer.Options{}, laid(t, f))
	item, err := s.Item(t.Context(), f.hash())
	if err != nil {
		t.Fatal(err)
	}
	since, err := x.LastChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	yes := func(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil }
	if withdrawn, err := deletion.Withdraw(t.Context(), s, []*storage.Item{item}, since, yes); err != nil || len(withdrawn) != 1 {
		t.Fatal(withdrawn, err)
	}
	if item, err = s.Item(t.Context(), f.hash()); err != nil || !item.WithdrawnAt.Equal(clock.set(0, 0)) {
		t.Errorf("withdrawn at %v, want %v, %v", item.WithdrawnAt, clock.set(0, 0), err)
	}
}
