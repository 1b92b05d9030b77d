package storage_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// holds is a guard that allows everything.
func holds(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil }

func itemOf(t testing.TB, s *storage.Storage, f fake) *storage.Item {
	t.Helper()
	item, err := s.Item(context.Background(), f.hash())
	if err != nil {
		t.Fatal(err)
	}
	return item
}

func TestEvict(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	going, staying, changing := fake{n: 1, content: "goes"}, fake{n: 2, content: "stays"}, fake{n: 3, content: "changes"}
	importAll(t, s, importer.Options{}, laid(t, going, staying, changing))
	since := lastChange(t, p)
	items := []*storage.Item{itemOf(t, s, going), itemOf(t, s, changing)}
	// Between decision and deletion, one of them gets another narinfo.
	again := changing
	again.note = "signed again"
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, again)), "1 updated")
	told := false
	_, freed, err := deletion.Evict(t.Context(), s, items, since, func(_ *index.Tx, changed map[narinfo.PathHash]index.ChangeKind) error {
		told = changed[changing.hash()] == index.Added && len(changed) == 1
		return nil
	})
	if err != nil || freed.Items != 1 || freed.Size != int64(len("goes")) || freed.Usage <= 0 || !told {
		t.Errorf("%+v, %v, told %v", freed, err, told)
	}
	if item := itemOf(t, s, going); item.Stored != 0 || string(item.Text) != going.text() {
		t.Errorf("its row: %+v", item.Item)
	}
	if !gone(filepath.Join(p.store, going.name())) {
		t.Error("its bytes are still there")
	}
	wantServed(t, s, staying)
	wantServed(t, s, again)
	wantFindings(t, s)
	// If the guard refuses, nothing is removed.
	refused := errors.New("refused")
	if _, _, err := deletion.Evict(t.Context(), s, []*storage.Item{itemOf(t, s, staying)}, lastChange(t, p), func(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("%v", err)
	}
	wantServed(t, s, staying)
	// It can be added again.
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, going)), "1 completed")
	wantServed(t, s, going)
}

// lastChange returns the number of the newest change in the index.
func lastChange(t testing.TB, p place) int64 {
	t.Helper()
	x, err := index.Open(context.Background(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	last, err := x.LastChange(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// TestEvictFails: if bytes can't be deleted, no row claims them, the error says so, and
// they are deleted once that is possible.
func TestEvictFails(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	item := fake{n: 1, content: "goes"}
	importAll(t, s, importer.Options{}, laid(t, item))
	// A directory in its place can't be removed like a file.
	file := filepath.Join(p.store, item.name())
	broken := p.openWith(t, func(b bytestore.Store) bytestore.Store { return noRemove{b} })
	if _, _, err := deletion.Evict(t.Context(), broken, []*storage.Item{itemOf(t, s, item)}, lastChange(t, p), holds); err == nil || !strings.Contains(err.Error(), "it is stuck") {
		t.Errorf("%v", err)
	}
	if itemOf(t, s, item).Stored != 0 {
		t.Error("a row claims bytes that were to go")
	}
	if gone(file) {
		t.Fatal("it could be removed after all")
	}
	if dropped, err := deletion.DeletePending(t.Context(), s); err != nil || dropped.Size != 4 || !gone(file) {
		t.Errorf("%+v, %v", dropped, err)
	}
	if dropped, err := deletion.DeletePending(t.Context(), s); err != nil || dropped.Size != 0 {
		t.Errorf("again: %+v, %v", dropped, err)
	}
	// A file that is claimed again by then stays.
	importAll(t, s, importer.Options{}, laid(t, item))
	if _, _, err := deletion.Evict(t.Context(), broken, []*storage.Item{itemOf(t, s, item)}, lastChange(t, p), holds); err == nil {
		t.Error("no error")
	}
	importAll(t, s, importer.Options{}, laid(t, item))
	if dropped, err := deletion.DeletePending(t.Context(), s); err != nil || dropped.Size != 0 {
		t.Errorf("%+v, %v", dropped, err)
	}
	wantServed(t, s, item)
}

// noRemove is a store that can't delete.
type noRemove struct{ bytestore.Store }

func (noRemove) Remove(context.Context, string) error { return errors.New("it is stuck") }

func TestWithdrawAndRemove(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	going, returning := fake{n: 1, content: "goes"}, fake{n: 2, content: "returns"}
	importAll(t, s, importer.Options{}, laid(t, going, returning))
	before := time.Now()
	items := []*storage.Item{itemOf(t, s, going), itemOf(t, s, returning)}
	withdrawn, err := deletion.Withdraw(t.Context(), s, items, lastChange(t, p), holds)
	if err != nil || len(withdrawn) != 2 {
		t.Fatalf("%d, %v", len(withdrawn), err)
	}
	if _, err := s.Text(t.Context(), going.hash()); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("its narinfo is still visible: %v", err)
	}
	if content, err := stored(s, going.hash(), 0); err != nil || content != "goes" {
		t.Errorf("its nar: %q, %v", content, err)
	}
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, returning)), "1 completed")
	another := going
	another.other, another.content = true, "another"
	if results := importAll(t, s, importer.Options{}, laid(t, another)); outcomes(results) != "1 failed" {
		t.Errorf("another nar of a withdrawn item: %s", outcomes(results))
	}
	if freed, err := deletion.RemoveWithdrawn(t.Context(), s, before.Add(narinfo.UnadvertisedTTL)); err != nil || freed.Items != 0 {
		t.Errorf("too early: %+v, %v", freed, err)
	}
	freed, err := deletion.RemoveWithdrawn(t.Context(), s, time.Now().Add(48*time.Hour))
	if err != nil || freed.Items != 1 || freed.Size != 4 {
		t.Errorf("%+v, %v", freed, err)
	}
	if _, err := s.Item(t.Context(), going.hash()); !errors.Is(err, storage.ErrNotFound) || !gone(filepath.Join(p.store, going.name())) {
		t.Errorf("it is still there: %v", err)
	}
	wantServed(t, s, returning)
	wantFindings(t, s)
}

func TestIdentity(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	first, err := p.openTest(t).Identity(t.Context())
	if err != nil || first == "" {
		t.Fatalf("%q, %v", first, err)
	}
	if again, err := p.openTest(t).Identity(t.Context()); err != nil || again != first {
		t.Errorf("%q, %v; want %q", again, err, first)
	}
	if other, err := newPlace(t).openTest(t).Identity(t.Context()); err != nil || other == first {
		t.Errorf("another storage: %q, %v", other, err)
	}
	if none, err := p.openIndexOnly(t).Identity(t.Context()); err != nil || none != "" {
		t.Errorf("no storage: %q, %v", none, err)
	}
	if err := os.WriteFile(filepath.Join(p.store, "nar-herder-storage"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if name, err := p.openTest(t).Identity(t.Context()); err == nil {
		t.Errorf("an empty one: %q", name)
	}
}

func TestUsage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	usage := func() int64 {
		t.Helper()
		usage, _, err := s.Usage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return usage
	}
	write(t, filepath.Join(p.store, "stranger"), strings.Repeat("x", 100_000))
	if n := usage(); n != 0 {
		t.Errorf("%d bytes before the first survey", n)
	}
	if err := s.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := usage()
	if before < 100_000 {
		t.Errorf("%d bytes with a stranger of 100,000", before)
	}
	item := fake{n: 1, content: strings.Repeat("y", 50_000)}
	importAll(t, s, importer.Options{}, laid(t, item))
	estimated := usage() - before
	if err := s.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if counted := usage() - before; estimated < counted-4096 || estimated > counted+4096 || counted < 50_000 {
		t.Errorf("estimated %d, counted %d", estimated, counted)
	}
}

// TestPendingDeletesBehindOne: one file that can't be deleted keeps no others.
func TestPendingDeletesBehindOne(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	var names []string
	for n := range 450 {
		f := fake{n: n, content: "left"}
		layNars(t, p.store, f)
		names = append(names, f.name())
	}
	// This instance owns the storage.
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, fake{n: 1000, content: "stays"})), "1 added")
	_, x := p.openAt(t, nil)
	if err := x.Update(t.Context(), func(tx *index.Tx) error { return tx.AddPendingDeletes(names) }); err != nil {
		t.Fatal(err)
	}
	stuck := p.openWith(t, func(b bytestore.Store) bytestore.Store { return noRemoveOf{b, names[3]} })
	dropped, err := deletion.DeletePending(t.Context(), stuck)
	if err == nil || !strings.Contains(err.Error(), "it is stuck") || dropped.Size != 4*449 {
		t.Errorf("%+v, %v", dropped, err)
	}
	if left, err := x.PendingDeletes(t.Context(), "", 1000); err != nil || len(left) != 1 || left[0] != names[3] {
		t.Errorf("%d names are left, %v", len(left), err)
	}
}

// noRemoveOf can't delete one file.
type noRemoveOf struct {
	bytestore.Store
	name string
}

func (s noRemoveOf) Remove(ctx context.Context, name string) error {
	if name == s.name {
		return errors.New("it is stuck")
	}
	return s.Store.Remove(ctx, name)
}

// foresees is a store that can't delete one file, and reports that beforehand.
type foresees struct {
	bytestore.Store
	stuck string
}

func (f foresees) MayRemove(name string) error {
	if name == f.stuck {
		return errors.New("it is stuck")
	}
	return nil
}

// TestRemoveOtherWithdrawn: an item with a file that can't be deleted stays, and items
// that were withdrawn later are removed.
func TestRemoveOtherWithdrawn(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	var items []fake
	var hashes []narinfo.PathHash
	for n := range storage.BatchSize + 5 {
		items = append(items, fake{n: n + 1, content: "nar"})
		hashes = append(hashes, items[n].hash())
	}
	importAll(t, s, importer.Options{}, laid(t, items...))
	for _, some := range [][]narinfo.PathHash{hashes[:1], hashes[1:]} {
		if _, err := s.WithdrawAll(t.Context(), some, nil); err != nil {
			t.Fatal(err)
		}
	}
	broken := p.openWith(t, func(b bytestore.Store) bytestore.Store { return foresees{b, items[0].name()} })
	freed, err := deletion.RemoveWithdrawn(t.Context(), broken, time.Now().Add(48*time.Hour))
	if !errors.Is(err, storage.ErrNotDeleted) || freed.Items != len(items)-1 {
		t.Errorf("%+v, %v", freed, err)
	}
	if gone(filepath.Join(p.store, items[0].name())) {
		t.Error("the item with the undeletable file has lost it")
	}
	if freed, err := deletion.RemoveWithdrawn(t.Context(), s, time.Now().Add(48*time.Hour)); err != nil || freed.Items != 1 {
		t.Errorf("%+v, %v", freed, err)
	}
}

// TestRestoredPendingDeletes: an item that is imported again after a backup keeps its nar when
// the backup is restored, also if the nar was about to be deleted at the backup.
func TestRestoredPendingDeletes(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s, x := p.openAt(t, nil)
	item := fake{n: 1, content: "good"}
	importAll(t, s, importer.Options{}, laid(t, item))
	if _, err := s.Remove(t.Context(), item.hash()); err != nil {
		t.Fatal(err)
	}
	if err := x.Update(t.Context(), func(tx *index.Tx) error { return tx.AddPendingDeletes([]string{item.name()}) }); err != nil {
		t.Fatal(err)
	}
	restored := p
	restored.database = filepath.Join(t.TempDir(), "index.db")
	if err := x.Backup(t.Context(), restored.database, false, time.Now()); err != nil {
		t.Fatal(err)
	}
	importAll(t, s, importer.Options{}, laid(t, item))
	if dropped, err := deletion.DeletePending(t.Context(), restored.openTest(t)); err != nil || dropped.Size != 0 || gone(filepath.Join(p.store, item.name())) {
		t.Errorf("dropped: %+v, %v; want the nar kept", dropped, err)
	}
}
