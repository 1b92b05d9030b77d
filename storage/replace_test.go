package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/testfs"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/importer"
	"nar-herder/storage/importer/replacing"
)

// replacedIn crashes a replacement of before by after, of the same size, once the file is
// replaced, and opens the storage again, with a clock.
func replacedIn(t *testing.T, p place, before, after fake) (s *storage.Storage, faulty *faultStore, c *clock) {
	t.Helper()
	faulty = &faultStore{mode: power, at: -1}
	crashed, closeAll, err := p.open(func(bytes bytestore.Store) bytestore.Store {
		faulty.Directory = unwrap(bytes)
		return faulty
	})
	if err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, importAll(t, crashed, importer.Options{}, laid(t, before)), "1 added")
	source := laid(t, after)
	file := filepath.Join(p.store, before.name())
	for at := 0; !has(file, after.content); at++ {
		faulty.steps, faulty.at = 0, at
		if ended, err := try(func() error { return adding(importer.Options{Keep: true, Replace: true}, after)(crashed, source) }); !ended {
			t.Fatalf("no crash at step %d: %v", at, err)
		}
	}
	if err := closeAll(); err != nil {
		t.Fatal(err)
	}
	c = &clock{now: time.Now()}
	faulty = &faultStore{mode: dead, at: -1}
	s, closeAll, err = p.openWhen(func(bytes bytestore.Store) bytestore.Store {
		faulty.Directory = unwrap(bytes)
		return faulty
	}, c.read)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeAll(); err != nil {
			t.Error(err)
		}
	})
	for finding, err := range check.New(s).Compare(t.Context(), nil) {
		if err == nil && finding.Kind == check.Temporary {
			err = faulty.Directory.Remove(t.Context(), finding.Name)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return s, faulty, c
}

// noted returns the number of files that are recorded as being replaced.
func noted(t *testing.T, p place) int {
	t.Helper()
	_, x := p.openAt(t, nil)
	names, err := x.Settings(t.Context(), "storage.replacing/")
	if err != nil {
		t.Fatal(err)
	}
	return len(names)
}

// TestInterruptedReplacement: no row claims a file that may be of another nar, until that
// is imported again or the server has compared it.
func TestInterruptedReplacement(t *testing.T) {
	t.Parallel()
	before := fake{n: 1, content: "the nar", nar: "before"}
	after := fake{n: 1, content: "THE NAR", nar: "after"}
	decode := decodeFakes(operation{before: []fake{before}, lay: []fake{after}})
	narinfoOf := func(f fake) string {
		directory := t.TempDir()
		write(t, filepath.Join(directory, f.hash().String()+".narinfo"), f.text())
		return directory
	}
	t.Run("the old narinfo again", func(t *testing.T) {
		p := newPlace(t)
		s, _, _ := replacedIn(t, p, before, after)
		for _, r := range importAll(t, s, importer.Options{}, narinfoOf(before)) {
			if r.Outcome != importer.Failed || !strings.Contains(r.Err.Error(), "may be the old or the new nar") {
				t.Errorf("%v, %v", r.Outcome, r.Err)
			}
		}
		if content, err := stored(s, before.hash(), 0); !errors.Is(err, storage.ErrNotStored) {
			t.Errorf("%q is served for the old narinfo, %v", content, err)
		}
		wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, before)), "1 completed")
		wantServed(t, s, before)
	})
	t.Run("the new narinfo again", func(t *testing.T) {
		p := newPlace(t)
		s, _, _ := replacedIn(t, p, before, after)
		wantOutcomes(t, importAll(t, s, importer.Options{Replace: true}, laid(t, after)), "1 replaced")
		wantServed(t, s, after)
		wantFindings(t, s)
	})
	t.Run("the server", func(t *testing.T) {
		p := newPlace(t)
		s, faulty, c := replacedIn(t, p, before, after)
		resolve := func() error { return replacing.Resolve(t.Context(), s, decode) }
		// Another process may still be replacing it.
		if err := resolve(); err != nil || noted(t, p) != 1 {
			t.Errorf("at once: %v, %d names", err, noted(t, p))
		}
		c.set(time.Hour, 0)
		// A file that can't be read proves nothing.
		faulty.steps, faulty.at = 0, 0
		if err := resolve(); !errors.Is(err, errFault) || noted(t, p) != 1 {
			t.Errorf("unreadable: %v, %d names", err, noted(t, p))
		}
		faulty.at = -1
		if err := resolve(); err != nil || noted(t, p) != 0 {
			t.Errorf("%v, %d names", err, noted(t, p))
		}
		wantFindings(t, s, "unrecorded "+before.name())
	})
	t.Run("removed", func(t *testing.T) {
		p := newPlace(t)
		s, _, c := replacedIn(t, p, before, after)
		if _, err := s.Remove(t.Context(), before.hash()); err != nil {
			t.Fatal(err)
		}
		c.set(time.Hour, 0)
		if err := replacing.Resolve(t.Context(), s, decode); err != nil {
			t.Error(err)
		}
		if n := noted(t, p); n != 0 {
			t.Errorf("%d names", n)
		}
	})
}

// TestUnknownStays: an addition that fails in its transaction, because its reference was just
// removed, does not make a row claim a file that an earlier one left unknown.
func TestUnknownStays(t *testing.T) {
	t.Parallel()
	before := fake{n: 1, content: "the nar", nar: "before"}
	after := fake{n: 1, content: "THE NAR", nar: "after"}
	third := fake{n: 1, content: "another", nar: "third", refs: []int{2}}
	reference := fake{n: 2, content: "a reference"}
	p := newPlace(t)
	s, faulty, _ := replacedIn(t, p, before, after)
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, reference)), "1 added")
	source := laid(t, third)
	removed := false
	faulty.before = func() error {
		if removed {
			return nil
		}
		// References were checked by now, before any file.
		removed = true
		_, err := s.Remove(t.Context(), reference.hash())
		return err
	}
	r := importer.New(s).Add(t.Context(), &importer.Addition{Narinfo: third.parsed(), Directories: []string{source}, Keep: true, Replace: true, WithReferences: true})
	faulty.before = nil
	if r.Outcome != importer.Failed || !strings.Contains(r.Err.Error(), "no narinfo for its references") || !removed {
		t.Fatalf("%v, %v; removed: %v", r.Outcome, r.Err, removed)
	}
	if n := noted(t, p); n != 1 {
		t.Errorf("%d files are noted as being replaced, want 1", n)
	}
	directory := t.TempDir()
	write(t, filepath.Join(directory, before.hash().String()+".narinfo"), before.text())
	wantOutcomes(t, importAll(t, s, importer.Options{}, directory), "1 failed")
	if content, err := stored(s, before.hash(), 0); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("%q is served for the old narinfo, %v", content, err)
	}
}

// readsOwner reads the owner file, as the owner of a store does before it writes.
func readsOwner(store bytestore.Store) func(context.Context) error {
	return func(ctx context.Context) error {
		reader, _, err := store.Open(ctx, bytestore.OwnerName, 0, -1)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		return reader.Close()
	}
}

// TestReplacementNotBegun: a replacement that fails before it begins takes nothing from
// clients, and leaves no record.
func TestReplacementNotBegun(t *testing.T) {
	t.Parallel()
	before := fake{n: 1, content: "the nar"}
	after := fake{n: 1, content: "THE NAR", other: true}
	p := newPlace(t)
	faulty := &faultStore{at: -1}
	s := p.openTestAs(t, func(bytes bytestore.Store) bytestore.Store {
		faulty.Directory = unwrap(bytes)
		return faulty
	}, storage.Options{MayWrite: readsOwner(faulty)})
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, before)), "1 added")
	add := func(options importer.Options) importer.Result {
		f := after
		f.refs = []int{2}
		r := importer.New(s).Add(t.Context(), &importer.Addition{Narinfo: f.parsed(), Directories: []string{laid(t, f)}, Keep: true, Replace: true, WithReferences: options.WithReferences})
		faulty.at = -1
		return r
	}
	wantAsBefore := func(what string, r importer.Result) {
		t.Helper()
		if r.Outcome != importer.Failed {
			t.Errorf("%s: %v", what, r.Outcome)
		}
		wantServed(t, s, before)
		wantFindings(t, s)
		if n := noted(t, p); n != 0 {
			t.Errorf("%s: %d names", what, n)
		}
	}
	wantAsBefore("a reference is missing", add(importer.Options{WithReferences: true}))
	commits, steps := faulty.commits.Load(), 0
	for ; ; steps++ {
		faulty.mode, faulty.steps, faulty.at = dead, 0, steps
		r := add(importer.Options{})
		if faulty.commits.Load() > commits {
			break
		}
		wantAsBefore(fmt.Sprintf("the store has failed at step %d", steps), r)
	}
	if steps < 7 {
		t.Errorf("only %d steps before the first commit", steps)
	}
}

// TestRepairedInPlace: a damaged file is replaced by the right one while its row claims it.
// If the row didn't, clients would get a 404.
func TestRepairedInPlace(t *testing.T) {
	t.Parallel()
	item := fake{n: 1, content: "the nar"}
	p := newPlace(t)
	faulty := &faultStore{at: -1}
	s := p.openWith(t, func(bytes bytestore.Store) bytestore.Store {
		faulty.Directory = unwrap(bytes)
		return faulty
	})
	damaged(item, func(file string) error { return os.Truncate(file, 3) })(t, p, s)
	source := laid(t, item)
	failed := 0
	for at := 0; ; at++ {
		faulty.mode, faulty.steps, faulty.at = once, 0, at
		r := importer.New(s).Add(t.Context(), &importer.Addition{Narinfo: item.parsed(), Directories: []string{source}, Keep: true})
		faulty.at = -1
		if r.Err == nil && r.Outcome == importer.Completed {
			break
		}
		failed++
		if now, err := s.Item(t.Context(), item.hash()); err != nil || !now.HasStored(0) {
			t.Errorf("a fault at step %d: %v, %v", at, now, err)
		}
		if has(filepath.Join(p.store, item.name()), item.content) { // it is repaired by then
			damaged := filepath.Join(p.store, item.name())
			if err := os.Truncate(damaged, 3); err != nil {
				t.Fatal(err)
			}
		}
	}
	if failed == 0 {
		t.Error("nothing has failed")
	}
	wantServed(t, s, item)
	wantFindings(t, s)
}

// TestReplacementFullDatabase: if a replacement fails because the file system of the
// database is full, the old nar is still served, as is one that the server identifies.
func TestReplacementFullDatabase(t *testing.T) {
	t.Parallel()
	before := fake{n: 1, content: "the nar", nar: "before"}
	after := fake{n: 1, content: "THE NAR", nar: "after"}
	decode := decodeFakes(operation{before: []fake{before}, lay: []fake{after}})
	small := func(t *testing.T) place {
		p := newPlace(t)
		p.database = filepath.Join(testfs.Small(t, 8<<20), "db")
		return p
	}
	t.Run("not begun", func(t *testing.T) {
		p := small(t)
		faulty := &faultStore{at: -1}
		s := p.openTestAs(t, func(bytes bytestore.Store) bytestore.Store {
			faulty.Directory = unwrap(bytes)
			return faulty
		}, storage.Options{MayWrite: readsOwner(faulty)})
		_, x := p.openAt(t, nil)
		wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, before)), "1 added")
		full := false
		faulty.before = func() error {
			names, err := x.Settings(t.Context(), "storage.replacing/")
			if err != nil || len(names) == 0 {
				return err
			}
			// This is between the two transactions of the addition.
			if !full {
				useReserve(t, x)
				full = true
			}
			return errFault
		}
		r := importer.New(s).Add(t.Context(), &importer.Addition{Narinfo: after.parsed(), Directories: []string{laid(t, after)}, Keep: true, Replace: true})
		faulty.before = nil
		if r.Outcome != importer.Failed || !full {
			t.Fatalf("%v, %v; full: %v", r.Outcome, r.Err, full)
		}
		wantServed(t, s, before)
		if n := noted(t, p); n != 0 {
			t.Errorf("%d files are noted as being replaced", n)
		}
	})
	t.Run("the server", func(t *testing.T) {
		p := small(t)
		s, _, c := replacedIn(t, p, before, after)
		write(t, filepath.Join(p.store, before.name()), before.content)
		_, x := p.openAt(t, nil)
		useReserve(t, x)
		c.set(time.Hour, 0)
		if err := replacing.Resolve(t.Context(), s, decode); err != nil {
			t.Error(err)
		}
		wantServed(t, s, before)
		if n := noted(t, p); n != 0 {
			t.Errorf("%d files are noted as being replaced", n)
		}
	})
}
