package storage_test

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// beside is a second instance on the storage of a place.
func (p place) beside(t testing.TB) place {
	t.Helper()
	return place{filepath.Join(t.TempDir(), "nar_herder.db"), p.store}
}

// TestOwner: who came first writes and removes; others read, and say whose it is.
func TestOwner(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	first := p.openTest(t)
	items := []fake{{n: 1, content: "one"}, {n: 2, content: "two"}}
	if owner, err := first.Owner(t.Context()); err != nil || owner != "" || !first.IsOurs(t.Context()) {
		t.Errorf("before anything is written: %q, %v", owner, err)
	}
	wantOutcomes(t, importAll(t, first, storage.ImportOptions{}, laid(t, items...)), "2 added")
	if owner, err := first.Owner(t.Context()); err != nil || owner != first.Instance() || !first.IsOurs(t.Context()) {
		t.Errorf("after an import: %q, %v, want %q", owner, err, first.Instance())
	}

	second := p.beside(t).openTest(t)
	if second.IsOurs(t.Context()) {
		t.Error("the second says that the storage is its own")
	}
	// What lies there can be served.
	beside := t.TempDir()
	write(t, filepath.Join(beside, items[0].hash().String()+".narinfo"), items[0].text())
	wantOutcomes(t, importAll(t, second, storage.ImportOptions{}, beside), "1 added")
	wantServed(t, second, items[0])
	// Nothing comes in, nothing is replaced.
	for what, item := range map[string]fake{"another": {n: 3, content: "three"}, "a replacement": {n: 1, content: "other", other: true}} {
		results := importAll(t, second, storage.ImportOptions{Replace: true}, laid(t, item))
		for _, result := range results {
			if !errors.Is(result.Err, storage.ErrNotOwner) || !strings.Contains(result.Err.Error(), "claim-storage") {
				t.Errorf("%s: %v, want ErrNotOwner with what to do", what, result.Err)
			}
		}
	}
	since := int64(0)
	item, err := second.Item(t.Context(), items[0].hash())
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := second.Evict(t.Context(), []*storage.Item{item}, since, func(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil }); !errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("Evict: %v, want ErrNotOwner", err)
	}
	if _, err := second.Reserve(t.Context(), 1); !errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("Reserve: %v, want ErrNotOwner", err)
	}
	repair := second.Repairer(storage.RepairOptions{Decode: decode}).Repair(t.Context(), storage.Finding{Kind: storage.Temporary, Name: items[1].name()})
	if !errors.Is(repair.Err, storage.ErrNotOwner) {
		t.Errorf("Repair: %+v, want ErrNotOwner", repair)
	}
	if removal, err := second.Remove(t.Context(), items[0].hash()); !errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("Remove: %+v, %v; want ErrNotOwner", removal, err)
	}
	if _, err := second.WithdrawAll(t.Context(), hashesOf(items[:1]), nil); !errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("WithdrawAll: %v, want ErrNotOwner", err)
	}
	if err := second.Adopt(t.Context(), item, 0, decode); !errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("Adopt: %v, want ErrNotOwner", err)
	}
	for _, item := range items {
		wantServed(t, first, item)
	}
	wantFindings(t, first)
	// What the owner replaces or removes is no fault of the second's.
	wantNotStored := func() {
		t.Helper()
		if _, _, err := second.OpenFile(t.Context(), item, 0, 0, -1); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("OpenFile: %v, want ErrNotStored", err)
		}
		if err := second.LookFor(t.Context(), item, 0); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("LookFor: %v, want ErrNotStored", err)
		}
	}
	wantOutcomes(t, importAll(t, first, storage.ImportOptions{Replace: true}, laid(t, fake{n: 1, content: "rebuilt", other: true})), "1 replaced")
	wantNotStored()
	if _, err := first.Remove(t.Context(), items[0].hash()); err != nil {
		t.Error(err)
	}
	wantNotStored()
	if dropped, err := second.DropLeftovers(t.Context()); err != nil || dropped != (storage.Freed{}) {
		t.Errorf("leftovers of the second: %+v, %v; want none", dropped, err)
	}
}

// TestTakeOver: the one that is taken from notices before it removes anything.
func TestTakeOver(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	first := p.openTest(t)
	items := []fake{{n: 1, content: "one"}, {n: 2, content: "two", claim: -1}, {n: 3, content: "three"}, {n: 4, content: "four"}}
	importAll(t, first, storage.ImportOptions{}, laid(t, items...))

	q := p.beside(t)
	addRows(t, q, items[:3]...)
	write(t, filepath.Join(p.store, items[2].name()), "longer than it was")
	second := q.openTest(t)
	files := 0
	taken, err := second.TakeOver(t.Context(), func() { files++ })
	if err != nil || taken.Before != first.Instance() || taken.Recorded != 2 || taken.Strangers != 2 {
		t.Errorf("taken over: %+v, %v; want 2 recorded of 4 nars, before that it was %s", taken, err, first.Instance())
	}
	wantServed(t, second, items[0])
	wantServed(t, second, items[1])
	if removal, err := first.Remove(t.Context(), items[0].hash()); !errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("removed by the first: %+v, %v", removal, err)
	}
	wantServed(t, second, items[0])
	if err := first.MayDelete(t.Context()); !errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("the first: %v, want ErrNotOwner", err)
	}
	// Again it finds nothing to do.
	if taken, err = second.TakeOver(t.Context(), func() {}); err != nil || taken.Before != second.Instance() || taken.Recorded != 0 {
		t.Errorf("taken over again: %+v, %v", taken, err)
	}
	if removal, err := second.Remove(t.Context(), items[0].hash()); err != nil || removal.Bytes == 0 {
		t.Errorf("removed by the second: %+v, %v", removal, err)
	}
}

// TestTakeOverStale: claims from when an instance owned the storage before count no
// more than what is there.
func TestTakeOverStale(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	first := p.openTest(t)
	items := []fake{{n: 1, content: "one", extra: []fake{{content: "1", kind: "zstd"}, {content: "I", kind: "gzip"}}}, {n: 2, content: "two"}, {n: 3, content: "three"}}
	importAll(t, first, storage.ImportOptions{}, laid(t, items...))
	second := p.beside(t).openTest(t)
	if _, err := second.TakeOver(t.Context(), func() {}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{items[0].name(), "nar/gzip/" + items[0].path().BaseName(), items[1].name()} {
		if err := os.Remove(filepath.Join(p.store, name)); err != nil {
			t.Fatal(err)
		}
	}
	taken, err := first.TakeOver(t.Context(), func() {})
	if err != nil || taken.Missing != 3 || taken.Recorded != 0 || taken.Strangers != 0 {
		t.Errorf("taken back: %+v, %v; want 3 missing", taken, err)
	}
	if _, err := stored(first, items[0].hash(), 0); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("one that is gone: %v, want ErrNotStored", err)
	}
	if content, err := stored(first, items[0].hash(), 1); err != nil || content != "1" {
		t.Errorf("another of the same item: %q, %v", content, err)
	}
	wantServed(t, first, items[2])
	wantFindings(t, first)
}

// takenMeanwhile is a store that is taken over just after its owner was looked at.
type takenMeanwhile struct {
	storage.ByteStore
	looks  int // before that
	taking *func()
}

func (s *takenMeanwhile) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, storage.Info, error) {
	reader, info, err := s.ByteStore.Open(ctx, name, offset, length)
	if name == storage.OwnerName && *s.taking != nil {
		if s.looks--; s.looks < 0 {
			(*s.taking)()
		}
	}
	return reader, info, err
}

// TestTakenMeanwhile: whoever was the owner when it began is not when it comes to
// change anything.
func TestTakenMeanwhile(t *testing.T) {
	t.Parallel()
	item, lacking := fake{n: 1, content: "one"}, fake{n: 1000, content: "another"}
	// Of so many, some are deleted in a later transaction than others.
	many := []fake{item}
	for n := 2; n <= 250; n++ {
		many = append(many, fake{n: n, content: "many"})
	}
	for what, test := range map[string]struct {
		looks  int // before it is taken over
		change func(*testing.T, *storage.Storage, func()) error
		of     fake // must stay as it is
		want   error
	}{
		"remove": {1, func(t *testing.T, s *storage.Storage, _ func()) error {
			_, err := s.RemoveAll(t.Context(), hashesOf(many), nil)
			return err
		}, many[len(many)-1], nil},
		"replace": {0, func(t *testing.T, s *storage.Storage, _ func()) error {
			other := fake{n: 1, content: "other", other: true}
			return importAll(t, s, storage.ImportOptions{Replace: true}, laid(t, other))[item.hash().String()+".narinfo"].Err
		}, item, storage.ErrNotOwner},
		"repair": {0, func(t *testing.T, s *storage.Storage, _ func()) error {
			return s.Repairer(storage.RepairOptions{Decode: decode}).Repair(t.Context(), allFindings(t, s)[0]).Err
		}, fake{n: 1, content: "wrong"}, storage.ErrNotOwner},
		"receive": {0, func(t *testing.T, s *storage.Storage, take func()) error {
			take() // just after it was known to be its own
			return s.Receive(t.Context(), itemOf(t, s, lacking), 0, spooled(t, s, lacking.content))
		}, fake{}, storage.ErrNotOwner},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			var taking func()
			store := &takenMeanwhile{looks: test.looks, taking: &taking}
			first := p.openWith(t, func(b storage.ByteStore) storage.ByteStore {
				store.ByteStore = b
				return store
			})
			importAll(t, first, storage.ImportOptions{}, laid(t, many...))
			addRows(t, p, lacking)
			if test.of.content == "wrong" {
				write(t, filepath.Join(p.store, item.name()), "wrong")
			}
			second := p.beside(t).openTest(t)
			taking = func() {
				taking = nil
				if _, err := second.TakeOver(t.Context(), func() {}); err != nil {
					t.Error(err)
				}
			}
			if err := test.change(t, first, taking); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if taking != nil {
				t.Error("the owner was not looked at")
			}
			if test.of.n != 0 && !has(filepath.Join(p.store, test.of.name()), test.of.content) {
				t.Errorf("the other's nar is not %q any more", test.of.content)
			}
		})
	}
}

// TestCopied: while another instance has the same name, nobody knows which one is the
// owner, whatever else is settled.
func TestCopied(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	item := fake{n: 1, content: "one"}
	importAll(t, s, storage.ImportOptions{}, laid(t, item))
	s.SetCopied(true)
	if err := s.SetFrontEnd(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	if err := s.MayDelete(t.Context()); !errors.Is(err, storage.ErrCopied) || s.IsOurs(t.Context()) || !s.IsUnsettled() {
		t.Errorf("it may delete: %v", err)
	}
	wantServed(t, s, item)
	s.SetCopied(false)
	if err := s.MayDelete(t.Context()); err != nil || !s.IsOurs(t.Context()) {
		t.Errorf("when the other is gone: %v", err)
	}
}

// TestFrontEnd: a front end serves what is there, whatever its rows say; what is not
// there is no fault.
func TestFrontEnd(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	primary := p.openTest(t)
	items := []fake{{n: 1, content: "one"}, {n: 2, content: "two"}, {n: 3, content: "three", claim: -1}}
	importAll(t, primary, storage.ImportOptions{}, laid(t, items...))
	name, err := primary.Identity(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	q := p.beside(t)
	addRows(t, q, items...)
	front := q.openTest(t)
	if shares, err := front.SharesWith(t.Context(), name); err != nil || !shares {
		t.Fatalf("shares: %v, %v", shares, err)
	}
	if shares, err := front.SharesWith(t.Context(), "another"); err != nil || shares {
		t.Errorf("shares with another: %v, %v", shares, err)
	}
	if _, err := stored(front, items[0].hash(), 0); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("before it is a front end: %v, want ErrNotStored", err)
	}
	front.Unsettle()
	if err := front.MayDelete(t.Context()); err == nil || errors.Is(err, storage.ErrNotOwner) || front.IsOurs(t.Context()) {
		t.Errorf("while it is not known: %v", err)
	}
	if err := front.SetFrontEnd(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	for _, s := range []*storage.Storage{front, func() *storage.Storage {
		again := q.openTest(t)
		if err := again.Remember(t.Context()); err != nil {
			t.Fatal(err)
		}
		return again
	}()} {
		wantServed(t, s, items[0])
		wantServed(t, s, items[1])
		if _, err := stored(s, items[2].hash(), 0); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("of unknown length: %v, want ErrNotStored", err)
		}
		if err := s.MayDelete(t.Context()); !errors.Is(err, storage.ErrNotOwner) || !s.IsFrontEnd() || s.IsOurs(t.Context()) {
			t.Errorf("a front end may delete: %v", err)
		}
	}
	// As the primary removes it, or replaces it.
	if _, err := primary.Remove(t.Context(), items[0].hash()); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(p.store, items[1].name()), "longer than before")
	for _, item := range items[:2] {
		if _, err := stored(front, item.hash(), 0); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("gone: %v, want ErrNotStored", err)
		}
	}
	found, err := front.ItemsAt(t.Context(), hashesOf(items))
	if err != nil || slices.Contains(found, nil) || !found[0].HasStored(0) {
		t.Errorf("items: %v, %v", found, err)
	}
	// With another storage, what was noted does not count; but one that has no name
	// may be where this one should be mounted.
	named := newPlace(t)
	if _, err := named.openTest(t).Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	for directory, want := range map[string]bool{named.store: false, t.TempDir(): true} {
		other := place{q.database, directory}.openTest(t)
		if err := other.Remember(t.Context()); err != nil || other.IsFrontEnd() != want {
			t.Errorf("with another storage: %v, front end: %v, want %v", err, other.IsFrontEnd(), want)
		}
		if _, err := other.SharesWith(t.Context(), "another"); (err != nil) != want {
			t.Errorf("with another storage, whether it shares that: %v, want an error: %v", err, want)
		}
		if err := other.MayDelete(t.Context()); errors.Is(err, storage.ErrNotOwner) != want {
			t.Errorf("with another storage, it may delete: %v", err)
		}
	}
}

// TestOwnerUnknown: what can't be read is no reason to write or to delete.
func TestOwnerUnknown(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	item := fake{n: 1, content: "one"}
	importAll(t, s, storage.ImportOptions{}, laid(t, item))
	record := filepath.Join(p.store, storage.OwnerName)
	if err := errors.Join(os.Remove(record), os.WriteFile(record, []byte(strings.Repeat("x", 200)), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := s.MayDelete(t.Context()); err == nil || errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("with an unreadable record: %v", err)
	}
	removal, err := s.Remove(t.Context(), item.hash())
	if err == nil || !removal.Left {
		t.Errorf("removed: %+v, %v; want the bytes left", removal, err)
	}
	if gone(filepath.Join(p.store, item.name())) {
		t.Error("the bytes are gone")
	}
	if err := os.WriteFile(record, []byte(s.Instance()+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if dropped, err := s.DropLeftovers(t.Context()); err != nil || dropped.Size != 3 {
		t.Errorf("when it can be read again: %+v, %v; want what was left dropped", dropped, err)
	}
}

// TestOwnerOfNobodys: a storage that has nars and belongs to nobody yet, as after an
// update of the program, is not for any other index to claim.
func TestOwnerOfNobodys(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	first := p.openTest(t)
	items := []fake{{n: 1, content: "one"}, {n: 2, content: "two"}}
	importAll(t, first, storage.ImportOptions{}, laid(t, items...))
	record := filepath.Join(p.store, storage.OwnerName)
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	q := p.beside(t)
	addRows(t, q, items...)
	second := q.openTest(t)
	if err := second.MayDelete(t.Context()); !errors.Is(err, storage.ErrNotOwner) || !strings.Contains(err.Error(), "claim-storage") {
		t.Errorf("an index without nars there: %v, want ErrNotOwner with what to do", err)
	}
	if _, err := second.Remove(t.Context(), items[0].hash()); !errors.Is(err, storage.ErrNotOwner) {
		t.Errorf("Remove: %v, want ErrNotOwner", err)
	}
	if owner, err := first.Owner(t.Context()); err != nil || owner != "" {
		t.Errorf("it belongs to %q, %v", owner, err)
	}
	if err := first.MayDelete(t.Context()); err != nil {
		t.Errorf("the one that has its nars: %v", err)
	}
	// Several at once claim it once.
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			if err := first.MayDelete(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	asking.Wait()
	// An empty one is anybody's.
	empty := newPlace(t).openTest(t)
	if err := empty.MayDelete(t.Context()); err != nil || !empty.IsOurs(t.Context()) {
		t.Errorf("an empty one: %v", err)
	}
}

// unwritable is a store that nothing can be written to.
type unwritable struct{ storage.ByteStore }

func (unwritable) Probe(context.Context) error { return errors.New("it can't be written to") }

// TestFrontEndHealth: for a storage that another writes to, it is enough that it can
// be read.
func TestFrontEndHealth(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openWith(t, func(b storage.ByteStore) storage.ByteStore { return unwritable{b} })
	wantHealth := func(what string, healthy bool) {
		t.Helper()
		if indexErr, bytesErr := s.Healthy(t.Context()); indexErr != nil || (bytesErr == nil) != healthy {
			t.Errorf("%s: %v, %v", what, indexErr, bytesErr)
		}
	}
	wantHealth("its own", false)
	s.Unsettle()
	wantHealth("not known whose, and new", true)
	if _, err := s.Identity(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantHealth("not known whose", true)
	if err := s.SetFrontEnd(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	wantHealth("another's", true)
	if err := os.Remove(filepath.Join(p.store, storage.IdentityName)); err != nil {
		t.Fatal(err)
	}
	wantHealth("another's, which is not there", false)
}
