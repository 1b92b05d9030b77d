package storage_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/recount"
)

// beside is a second instance on the storage of a place.
func (p place) beside(t testing.TB) place {
	t.Helper()
	return place{filepath.Join(t.TempDir(), "nar_herder.db"), p.store}
}

// notOwner refuses all writes, like a byte store that belongs to another instance.
func notOwner(context.Context) error { return storage.ErrNotOwner }

// TestNotOwner: an instance that does not own its byte store changes nothing in it, and
// serves its nars.
func TestNotOwner(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	first := p.openTest(t)
	items := []fake{{n: 1, content: "one"}, {n: 2, content: "two"}}
	wantOutcomes(t, importAll(t, first, importer.Options{}, laid(t, items...)), "2 added")

	second := p.beside(t).openTestAs(t, nil, storage.Options{MayWrite: notOwner})
	if second.IsOurs(t.Context()) {
		t.Error("the second instance claims the storage")
	}
	// Existing nars can be served.
	beside := t.TempDir()
	write(t, filepath.Join(beside, items[0].hash().String()+".narinfo"), items[0].text())
	wantOutcomes(t, importAll(t, second, importer.Options{}, beside), "1 added")
	wantServed(t, second, items[0])
	for what, item := range map[string]fake{"another": {n: 3, content: "three"}, "a replacement": {n: 1, content: "other", other: true}} {
		for _, result := range importAll(t, second, importer.Options{Replace: true}, laid(t, item)) {
			if !errors.Is(result.Err, storage.ErrNotOwner) {
				t.Errorf("%s: %v, want ErrNotOwner", what, result.Err)
			}
		}
	}
	item, err := second.Item(t.Context(), items[0].hash())
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func() error{
		"Evict": func() error {
			_, _, err := deletion.Evict(t.Context(), second, []*storage.Item{item}, 0, func(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil })
			return err
		},
		"Reserve": func() error {
			_, err := second.Reserve(t.Context(), 1)
			return err
		},
		"Repair": func() error {
			return check.New(second).Repairer(check.RepairOptions{Decode: decode}).Repair(t.Context(), check.Finding{Kind: check.Temporary, Name: items[1].name()}).Err
		},
		"Remove": func() error {
			_, err := second.Remove(t.Context(), items[0].hash())
			return err
		},
		"WithdrawAll": func() error {
			_, err := second.WithdrawAll(t.Context(), hashesOf(items[:1]), nil)
			return err
		},
		"Adopt": func() error { return second.Adopt(t.Context(), item, 0, decode) },
		"Recount": func() error {
			_, err := recount.Claims(t.Context(), second, func() {})
			return err
		},
	} {
		if err := change(); !errors.Is(err, storage.ErrNotOwner) {
			t.Errorf("%s: %v, want ErrNotOwner", what, err)
		}
	}
	for _, item := range items {
		wantServed(t, first, item)
	}
	wantFindings(t, first)
	// A nar that the owner replaces or removes is not a fault of the second instance.
	wantNotStored := func() {
		t.Helper()
		if _, _, err := second.OpenFile(t.Context(), item, 0, 0, -1); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("OpenFile: %v, want ErrNotStored", err)
		}
		if err := second.LookFor(t.Context(), item, 0); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("LookFor: %v, want ErrNotStored", err)
		}
	}
	wantOutcomes(t, importAll(t, first, importer.Options{Replace: true}, laid(t, fake{n: 1, content: "rebuilt", other: true})), "1 replaced")
	wantNotStored()
	if _, err := first.Remove(t.Context(), items[0].hash()); err != nil {
		t.Error(err)
	}
	wantNotStored()
	if dropped, err := deletion.DeletePending(t.Context(), second); err != nil || dropped != (storage.Freed{}) {
		t.Errorf("leftovers of the second: %+v, %v; want none", dropped, err)
	}
}

// TestOwnerUnknown: while the owner can't be read, nothing is deleted, and no pending
// delete is forgotten.
func TestOwnerUnknown(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	var failure atomic.Pointer[error]
	s := p.openTestAs(t, nil, storage.Options{MayWrite: func(context.Context) error {
		if err := failure.Load(); err != nil {
			return *err
		}
		return nil
	}})
	item := fake{n: 1, content: "one"}
	importAll(t, s, importer.Options{}, laid(t, item))
	failure.Store(&errFault)
	removal, err := s.Remove(t.Context(), item.hash())
	if err == nil || !removal.Left || gone(filepath.Join(p.store, item.name())) {
		t.Errorf("removed: %+v, %v; want the bytes left", removal, err)
	}
	failure.Store(nil)
	if dropped, err := deletion.DeletePending(t.Context(), s); err != nil || dropped.Size != 3 {
		t.Errorf("when it can be read again: %+v, %v; want the pending deletes done", dropped, err)
	}
}

// TestTakenMeanwhile: an instance that loses its byte store during a change stops before it
// deletes or replaces anything.
func TestTakenMeanwhile(t *testing.T) {
	t.Parallel()
	item, lacking := fake{n: 1, content: "one"}, fake{n: 1000, content: "another"}
	// There are so many that some are deleted in a later transaction.
	many := []fake{item}
	for n := 2; n <= 250; n++ {
		many = append(many, fake{n: n, content: "many"})
	}
	for what, test := range map[string]struct {
		looks  int64 // number of checks that still succeed
		change func(*testing.T, *storage.Storage) error
		of     fake // must stay unchanged
		want   error
	}{
		"remove": {2, func(t *testing.T, s *storage.Storage) error {
			_, err := s.RemoveAll(t.Context(), hashesOf(many), nil)
			return err
		}, many[len(many)-1], nil},
		"replace": {1, func(t *testing.T, s *storage.Storage) error {
			other := fake{n: 1, content: "other", other: true}
			return importAll(t, s, importer.Options{Replace: true}, laid(t, other))[item.hash().String()+".narinfo"].Err
		}, item, storage.ErrNotOwner},
		"repair": {1, func(t *testing.T, s *storage.Storage) error {
			return check.New(s).Repairer(check.RepairOptions{Decode: decode}).Repair(t.Context(), allFindings(t, s)[0]).Err
		}, fake{n: 1, content: "wrong"}, storage.ErrNotOwner},
		"receive": {0, func(t *testing.T, s *storage.Storage) error { // just after the check
			return s.Receive(t.Context(), itemOf(t, s, lacking), 0, spooled(t, s, lacking.content))
		}, fake{}, storage.ErrNotOwner},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			var looks atomic.Int64
			looks.Store(1 << 30)
			s := p.openTestAs(t, nil, storage.Options{MayWrite: func(context.Context) error {
				if looks.Add(-1) < 0 {
					return storage.ErrNotOwner
				}
				return nil
			}})
			importAll(t, s, importer.Options{}, laid(t, many...))
			addRows(t, p, lacking)
			if test.of.content == "wrong" {
				write(t, filepath.Join(p.store, item.name()), "wrong")
			}
			looks.Store(test.looks)
			if err := test.change(t, s); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if looks.Load() >= 0 {
				t.Error("the owner was not looked at")
			}
			if test.of.n != 0 && !has(filepath.Join(p.store, test.of.name()), test.of.content) {
				t.Errorf("the nar is not %q any more", test.of.content)
			}
		})
	}
}

// TestRecount: after a change of the owner, rows claim exactly the existing files.
func TestRecount(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := []fake{
		{n: 1, content: "one", extra: []fake{{content: "1", kind: "zstd"}, {content: "I", kind: "gzip"}}},
		{n: 2, content: "two", claim: -1}, {n: 3, content: "three"}, {n: 4, content: "four"},
	}
	importAll(t, p.openTest(t), importer.Options{}, laid(t, items...))

	q := p.beside(t)
	addRows(t, q, items[:3]...)
	write(t, filepath.Join(p.store, items[2].name()), "longer than it was")
	s := q.openTest(t)
	want := func(recorded, missing int64) {
		t.Helper()
		files := 0
		counted, err := recount.Claims(t.Context(), s, func() { files++ })
		if err != nil || counted.Recorded != recorded || counted.Missing != missing || files == 0 {
			t.Errorf("%+v of %d files, %v; want %d recorded, %d missing", counted, files, err, recorded, missing)
		}
	}
	want(4, 0)
	wantServed(t, s, items[0])
	wantServed(t, s, items[1])
	want(0, 0)
	for _, name := range []string{items[0].name(), "nar/gzip/" + items[0].path().BaseName(), items[1].name()} {
		if err := os.Remove(filepath.Join(p.store, name)); err != nil {
			t.Fatal(err)
		}
	}
	want(0, 3)
	if _, err := stored(s, items[0].hash(), 0); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("a file that is missing: %v, want ErrNotStored", err)
	}
	if content, err := stored(s, items[0].hash(), 1); err != nil || content != "1" {
		t.Errorf("another of the same item: %q, %v", content, err)
	}
}

// TestReadOnly: a front end serves existing files, whatever its rows say. A missing file is
// not a fault.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	primary := p.openTest(t)
	items := []fake{{n: 1, content: "one"}, {n: 2, content: "two"}, {n: 3, content: "three", claim: -1}}
	importAll(t, primary, importer.Options{}, laid(t, items...))

	q := p.beside(t)
	addRows(t, q, items...)
	front := q.openTestAs(t, nil, storage.Options{ReadOnly: true})
	if name, err := front.Identity(t.Context()); err == nil {
		t.Errorf("it has named the storage: %q", name)
	}
	// A withdrawn item is removed, although the storage has no name yet.
	withdrawn := fake{n: 4, content: "four"}
	addRows(t, q, withdrawn)
	_, x := q.openAt(t, nil)
	err := x.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Withdraw(withdrawn.hash(), time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if freed, err := deletion.RemoveWithdrawn(t.Context(), front, time.Now().AddDate(1, 0, 0)); err != nil || freed.Size != 0 {
		t.Errorf("withdrawn items: %+v, %v", freed, err)
	}
	if _, err := front.Item(t.Context(), withdrawn.hash()); !errors.Is(err, storage.ErrNotFound) {
		t.Errorf("the withdrawn item still exists: %v", err)
	}
	wantServed(t, front, items[0])
	wantServed(t, front, items[1])
	if _, err := stored(front, items[2].hash(), 0); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("of unknown length: %v, want ErrNotStored", err)
	}
	if err := front.MayDelete(t.Context()); !errors.Is(err, storage.ErrNotOwner) || !front.IsReadOnly() || front.IsOurs(t.Context()) {
		t.Errorf("a front end may delete: %v", err)
	}
	// As if the owner removed or replaced it.
	if _, err := primary.Remove(t.Context(), items[0].hash()); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(p.store, items[1].name()), "longer than before")
	for _, item := range items[:2] {
		if _, err := stored(front, item.hash(), 0); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("removed: %v, want ErrNotStored", err)
		}
	}
	found, err := front.ItemsAt(t.Context(), hashesOf(items))
	if err != nil || slices.Contains(found, nil) || !found[0].HasStored(0) {
		t.Errorf("items: %v, %v", found, err)
	}
}
