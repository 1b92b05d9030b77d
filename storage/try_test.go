package storage_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/probe"
)

// probed is a store with a failing Probe, like one that can't be written.
type probed struct{ bytestore.Store }

func (probed) Probe(context.Context) error { return errFault }

// tries are the expected results of the three ways to try a storage.
func tries(t *testing.T, what string, s *storage.Storage, reading, writing error) {
	t.Helper()
	if err := probe.Index(t.Context(), s); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if _, err := probe.Reading(t.Context(), s); !errors.Is(err, reading) {
		t.Errorf("%s: reading: %v, want %v", what, err, reading)
	}
	if err := probe.Writing(t.Context(), s); !errors.Is(err, writing) {
		t.Errorf("%s: writing: %v, want %v", what, err, writing)
	}
}

// wantWarning is the expected warning of reading; "" for none.
func wantWarning(t *testing.T, s *storage.Storage, want string) {
	t.Helper()
	if warning, err := probe.Reading(t.Context(), s); err != nil || !strings.Contains(warning, want) || want == "" && warning != "" {
		t.Errorf("reading: %q, %v, want %q", warning, err, want)
	}
}

// TestTry: if another instance writes to a storage, it must only be readable.
func TestTry(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	wrap := func(b bytestore.Store) bytestore.Store { return probed{b} }
	own := p.openWith(t, wrap)
	front := p.openTestAs(t, wrap, storage.Options{ReadOnly: true})
	lost := p.openTestAs(t, wrap, storage.Options{MayWrite: notOwner})
	missing := storage.ErrAllMissing
	tries(t, "index alone", newPlace(t).openIndexOnly(t), nil, nil)
	tries(t, "its own, empty", own, nil, errFault)
	tries(t, "another's, empty", lost, nil, nil)
	tries(t, "a front end's, not mounted", front, missing, nil)
	note := filepath.Join(p.store, bytestore.OwnerName)
	write(t, note, "somebody\n")
	tries(t, "a front end's, without a name yet", front, nil, nil)
	items := []fake{{n: 1, content: "1"}, {n: 2, content: "2"}, {n: 3, content: "3"}}
	importAll(t, own, importer.Options{}, laid(t, items...))
	remove := func(name string) {
		t.Helper()
		if err := os.Remove(filepath.Join(p.store, name)); err != nil {
			t.Fatal(err)
		}
	}
	remove(bytestore.OwnerName)
	tries(t, "its own", own, nil, errFault)
	tries(t, "a front end's, without notes", front, nil, nil)
	for _, item := range items[1:] {
		remove(item.name())
	}
	write(t, note, "somebody\n")
	tries(t, "with one nar", own, nil, errFault)
	wantWarning(t, own, "2 of 3 sampled nars are missing")
	// For a front end, the owner has removed them.
	wantWarning(t, front, "")
	wantWarning(t, lost, "")
	remove(items[0].name())
	tries(t, "without nars", own, missing, errFault)
	tries(t, "a front end's, without nars", front, nil, nil)
	tries(t, "another's, without nars", lost, nil, nil)
	wantWarning(t, front, "none of the sampled nars are there")
	wantWarning(t, lost, "none of the sampled nars are there")
	remove(bytestore.OwnerName)
	if err := os.Remove(filepath.Join(p.store, bytestore.IdentityName)); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	tries(t, "a front end's, not mounted again", front, missing, nil)
	tries(t, "another's, not mounted", lost, missing, nil)
	// A storage without nars lacks none.
	for _, item := range items {
		if _, err := own.Remove(t.Context(), item.hash()); err != nil {
			t.Fatal(err)
		}
	}
	tries(t, "its own, empty again", own, nil, errFault)
}

// TestTryUnreadable: nars exist, but can't be read.
func TestTryUnreadable(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	faults := &faultStore{at: -1}
	s := p.openWith(t, func(b bytestore.Store) bytestore.Store {
		faults.Directory = unwrap(b)
		return probed{faults}
	})
	importAll(t, s, importer.Options{}, laid(t, fake{n: 1, content: "1"}))
	faults.before = func() error { return errFault }
	tries(t, "all calls fail", s, errFault, errFault)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := probe.Reading(ctx, s); err == nil {
		t.Error("there is no error with a context that has ended")
	}
}

// TestTryPartly: the storage has only the nars of the first items, like an unfinished copy.
// Some sampled nars can be read: a single try fails once in 20,000 times, and two failures
// in a row make the server unready.
func TestTryPartly(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	var items []fake
	for n := range 60 {
		items = append(items, fake{n: n, content: "content"})
	}
	there, missing := items[:15], items[15:]
	importAll(t, s, importer.Options{}, laid(t, there...))
	importAll(t, s, importer.Options{}, laid(t, missing...))
	for _, item := range missing {
		if err := os.Remove(filepath.Join(p.store, item.name())); err != nil {
			t.Fatal(err)
		}
	}
	warned := 0
	var before error
	for range 200 {
		warning, err := probe.Reading(t.Context(), s)
		if err != nil && before != nil {
			t.Fatal(err)
		}
		before = err
		if strings.Contains(warning, "sampled nars are missing") {
			warned++
		}
	}
	if warned < 190 {
		t.Errorf("%d of 200 looks have met a missing nar", warned)
	}
}
