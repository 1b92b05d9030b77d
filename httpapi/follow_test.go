package httpapi

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/httpapi/itemcache"
	"nar-herder/internal/mirrortest"
	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// follow runs Follow until the test ends.
func (s *started) follow(t testing.TB, changes itemcache.Changes) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Follow(ctx, changes)
	}()
	t.Cleanup(func() {
		stop()
		<-done
	})
}

// TestOtherProcesses changes the index by another handle of the same files, which SQLite
// treats like another process.
func TestOtherProcesses(t *testing.T) {
	t.Parallel()
	first, second := make1(t, "first", "one", "gzip"), make1(t, "second", "two", "gzip")
	dir := t.TempDir()
	server := newStore(t)
	other := openStore(t, filepath.Dir(server.database))
	s := start(t, server, options())
	watcher, err := server.index.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watcher.Close() })
	s.follow(t, watcher)
	c := dial(t, s.address)
	narinfoOf := func(m *made) string { return "/" + m.path.Hash.String() + ".narinfo" }

	// soon retries until the answer is the wanted one, which takes 200 ms unless the
	// machine is busy.
	soon := func(what, target string, status int, body []byte) {
		t.Helper()
		begin := time.Now()
		for {
			got := c.ask("GET", target)
			if got.StatusCode == status && (body == nil || got.body == string(body)) {
				if took := time.Since(begin); took > 200*time.Millisecond {
					t.Logf("%s: seen after %v", what, took)
				}
				return
			}
			if time.Since(begin) > patience {
				t.Fatalf("%s: after %v still: %s %q", what, time.Since(begin), got.Status, got.body)
			}
			time.Sleep(time.Millisecond)
		}
	}
	// now sends one request, as negative answers are not kept.
	now := func(what, target string, status int, body []byte) {
		t.Helper()
		if got := c.ask("GET", target); got.StatusCode != status || body != nil && got.body != string(body) {
			t.Errorf("%s: at once: %s %q", what, got.Status, got.body)
		}
	}
	ask := func(m *made, times int) {
		for range times {
			c.ask("GET", narinfoOf(m))
			c.ask("GET", "/"+m.url())
			c.ask("GET", "/nar/"+m.path.BaseName())
		}
	}

	ask(first, 3)
	other.importAll(t, importer.Options{Keep: true}, first.write(t, dir))
	now("imported", narinfoOf(first), 200, first.text())
	now("imported: nar", "/"+first.url(), 200, first.file)
	ask(first, 3)

	// A new signature.
	again := *first
	text := mirrortest.Sign(again.text())
	name := again.write(t, dir)
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
	other.importAll(t, importer.Options{Keep: true}, name)
	soon("text replaced", narinfoOf(first), 200, text)

	// Another nar of the item, with the same file name.
	replacement := make1(t, "first", "one", "gzip")
	replacement.nar = flatNar("one and a half")
	replacement.narHash[3] ^= 1
	replacement.narSize = int64(len(replacement.nar))
	replacement.file = compress(t, "gzip", replacement.nar)
	replacement.fileSize = int64(len(replacement.file))
	ask(first, 3)
	other.importAll(t, importer.Options{Keep: true, Replace: true}, replacement.write(t, dir))
	// The old row and its file may still be in use for a moment.
	soon("nar replaced: nar", "/"+first.url(), 200, replacement.file)
	soon("nar replaced", narinfoOf(first), 200, replacement.text())

	other.importAll(t, importer.Options{Keep: true}, second.write(t, dir))
	now("second imported", narinfoOf(second), 200, second.text())
	ask(second, 3)
	// After a withdrawal, clients with the narinfo still get the nar.
	if _, err := other.WithdrawAll(t.Context(), []narinfo.PathHash{second.path.Hash}, nil); err != nil {
		t.Fatal(err)
	}
	soon("withdrawn", narinfoOf(second), 404, nil)
	soon("withdrawn: info", narinfoOf(second)+"/info", 404, nil)
	for range 2 {
		now("withdrawn: nar", "/"+second.url(), 200, second.file)
		now("withdrawn: plain nar", "/nar/"+second.path.BaseName(), 200, nil)
		now("withdrawn: again", narinfoOf(second), 404, nil)
	}
	if freed, err := deletion.RemoveWithdrawn(t.Context(), other.Storage, time.Now().Add(48*time.Hour)); err != nil || freed.Items != 1 {
		t.Fatal(freed, err)
	}
	soon("removed after it was withdrawn: nar", "/"+second.url(), 404, nil)
	other.importAll(t, importer.Options{Keep: true}, second.write(t, dir))
	now("imported after it was withdrawn", narinfoOf(second), 200, second.text())
	ask(second, 3)
	if _, err := other.Remove(t.Context(), second.path.Hash); err != nil {
		t.Fatal(err)
	}
	soon("removed", narinfoOf(second), 404, nil)
	soon("removed: nar", "/"+second.url(), 404, nil)
	soon("removed: plain nar", "/nar/"+second.path.BaseName(), 404, nil)
	soon("removed: info", narinfoOf(second)+"/info", 404, nil)
	now("the other", narinfoOf(first), 200, replacement.text())

	// Again, after a 404.
	other.importAll(t, importer.Options{Keep: true}, second.write(t, dir))
	now("imported again", narinfoOf(second), 200, second.text())
	now("imported again: nar", "/"+second.url(), 200, second.file)
}

// TestRemovedIsNotFound removes items while their nars are requested, which never causes a
// 500.
func TestRemovedIsNotFound(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	server := newStore(t)
	other := openStore(t, filepath.Dir(server.database))
	s := start(t, server, options())
	watcher, err := server.index.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { watcher.Close() })
	s.follow(t, watcher)
	m := make1(t, "item", strings.Repeat("content", 1000), "gzip")
	name := m.write(t, dir)
	c := dial(t, s.address)
	for range 5 {
		other.importAll(t, importer.Options{Keep: true}, name)
		targets := []string{"/" + m.url(), "/nar/" + m.path.BaseName(), "/file/item/sha256/" + m.digest, "/" + m.path.Hash.String() + ".narinfo/info"}
		for _, target := range targets {
			if got := c.ask("GET", target); got.StatusCode != 200 {
				t.Errorf("%s: %s", target, got.Status)
			}
		}
		done := make(chan error, 1)
		go func() {
			_, err := other.Remove(context.Background(), m.path.Hash)
			done <- err
		}()
		for removed := false; !removed; {
			select {
			case err := <-done:
				if err != nil {
					t.Fatal(err)
				}
				removed = true
			default:
			}
			for _, target := range targets {
				if got := c.ask("GET", target); got.StatusCode != 200 && got.StatusCode != 404 {
					t.Errorf("%s while it is removed: %s", target, got.Status)
				}
			}
		}
	}
}

// scriptedChanges is a watcher with changes from the test.
type scriptedChanges struct {
	mu    sync.Mutex
	news  []index.Change
	gap   bool
	err   error
	polls int
}

func (s *scriptedChanges) Poll() ([]index.Change, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.polls++
	news, complete := s.news, !s.gap
	s.news, s.gap = nil, false
	return news, complete, s.err
}

func (s *scriptedChanges) set(change func(*scriptedChanges)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// pass waits until the changes have been polled and handled.
func (s *scriptedChanges) pass(t *testing.T) {
	t.Helper()
	var before int
	s.set(func(s *scriptedChanges) { before = s.polls })
	until(t, "two polls", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.polls >= before+2
	})
}

func TestFollow(t *testing.T) {
	t.Parallel()
	a, b := make1(t, "a", "a", "none"), make1(t, "b", "b", "none")
	reads := make(map[narinfo.PathHash]int)
	var mu sync.Mutex
	items := &fakeItems{text: func(hash narinfo.PathHash) ([]byte, error) {
		mu.Lock()
		defer mu.Unlock()
		reads[hash]++
		return bytes.Repeat([]byte("x"), reads[hash]), nil
	}}
	s := start(t, items, options())
	changes := new(scriptedChanges)
	s.follow(t, changes)
	c := dial(t, s.address)
	// read sends two requests and returns whether each read the index.
	read := func(m *made) (looked [2]bool) {
		for i := range looked {
			mu.Lock()
			before := reads[m.path.Hash]
			mu.Unlock()
			c.ask("GET", "/"+m.path.Hash.String()+".narinfo")
			mu.Lock()
			looked[i] = reads[m.path.Hash] > before
			mu.Unlock()
		}
		return looked
	}
	check := func(what string, m *made, want [2]bool) {
		t.Helper()
		if got := read(m); got != want {
			t.Errorf("%s: looked at the index: %v, want %v", what, got, want)
		}
	}
	once, kept, never := [2]bool{true, false}, [2]bool{false, false}, [2]bool{true, true}
	check("first", a, once)
	check("first", b, once)
	for kind, want := range map[index.ChangeKind][2]bool{index.Added: once, index.Removed: once, index.StorageChanged: kept} {
		changes.set(func(s *scriptedChanges) { s.news = []index.Change{{Kind: kind, Hash: a.path.Hash}} })
		changes.pass(t)
		check("a changed", a, want)
		check("a changed", b, kept)
	}
	changes.set(func(s *scriptedChanges) { s.gap = true })
	changes.pass(t)
	check("after a gap", a, once)
	check("after a gap", b, once)

	changes.set(func(s *scriptedChanges) { s.err = errBroken })
	changes.pass(t)
	check("while polling fails", a, never)
	changes.pass(t)
	check("while polling fails", b, never)
	changes.set(func(s *scriptedChanges) { s.err = nil })
	changes.pass(t)
	check("polling works again", a, once)
	check("polling works again", b, once)
	log := s.log.String()
	if strings.Count(log, "keeping none in memory until this works again") != 1 || strings.Count(log, "keeping answers in memory again") != 1 {
		t.Errorf("the log says: %s", log)
	}
}

// TestFollowNars is the same for items with requested nars, which also change when a nar is
// stored.
func TestFollowNars(t *testing.T) {
	t.Parallel()
	m := make1(t, "x", "content", "none")
	var mu sync.Mutex
	stored := uint64(0)
	items := m.items(t)
	plain := items.open
	items.item = func(narinfo.PathHash) (*storage.Item, error) {
		item := m.item(t)
		mu.Lock()
		defer mu.Unlock()
		item.Stored = stored
		return item, nil
	}
	items.open = func(item *storage.Item, n int, offset, length int64) (_ io.ReadCloser, info bytestore.Info, err error) {
		if !item.HasStored(n) {
			return nil, info, storage.ErrNotStored
		}
		return plain(item, n, offset, length)
	}
	s := start(t, items, options())
	changes := new(scriptedChanges)
	s.follow(t, changes)
	c := dial(t, s.address)
	for range 2 {
		isFault(t, c.ask("GET", "/"+m.url()), 404)
	}
	mu.Lock()
	stored = 1
	mu.Unlock()
	changes.set(func(s *scriptedChanges) {
		s.news = []index.Change{{Kind: index.StorageChanged, Hash: m.path.Hash}}
	})
	changes.pass(t)
	if got := c.ask("GET", "/"+m.url()); got.StatusCode != 200 {
		t.Errorf("after it was stored: %s", got.Status)
	}
}

// TestFaultsAreNotKept uses an index that fails once.
func TestFaultsAreNotKept(t *testing.T) {
	t.Parallel()
	m := make1(t, "x", "content", "none")
	for _, fault := range []error{errBroken, storage.ErrNotFound} {
		items := m.items(t)
		text, item := items.text, items.item
		failing := true
		items.text = func(hash narinfo.PathHash) ([]byte, error) {
			if failing {
				return nil, fault
			}
			return text(hash)
		}
		items.item = func(hash narinfo.PathHash) (*storage.Item, error) {
			if failing {
				return nil, fault
			}
			return item(hash)
		}
		c := dial(t, start(t, items, options()).address)
		want := 500
		if errors.Is(fault, storage.ErrNotFound) {
			want = 404
		}
		targets := []string{"/" + m.path.Hash.String() + ".narinfo", "/" + m.url(), "/" + m.path.Hash.String() + ".narinfo/info"}
		for _, target := range targets {
			isFault(t, c.ask("GET", target), want)
		}
		failing = false
		for _, target := range targets {
			if got := c.ask("GET", target); got.StatusCode != 200 {
				t.Errorf("%s: %s %s", target, got.Status, got.body)
			}
		}
	}
}
