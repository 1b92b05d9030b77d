package storage_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"nar-herder/storage"
)

// probed is a store whose Probe fails, as one that can't be written.
type probed struct{ storage.ByteStore }

func (probed) Probe(context.Context) error { return errFault }

// tries is what the three ways to try a storage are expected to return.
func tries(t *testing.T, what string, s *storage.Storage, reading, writing error) {
	t.Helper()
	if err := s.TryIndex(t.Context()); err != nil {
		t.Errorf("%s: %v", what, err)
	}
	if err := s.TryReading(t.Context()); !errors.Is(err, reading) {
		t.Errorf("%s: reading: %v, want %v", what, err, reading)
	}
	if err := s.TryWriting(t.Context()); !errors.Is(err, writing) {
		t.Errorf("%s: writing: %v, want %v", what, err, writing)
	}
}

// TestTry: for a storage that another writes to, it is enough that it can be read.
func TestTry(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	wrap := func(b storage.ByteStore) storage.ByteStore { return probed{b} }
	own := p.openWith(t, wrap)
	front := p.openTestAs(t, wrap, storage.Options{ReadOnly: true})
	lost := p.openTestAs(t, wrap, storage.Options{MayWrite: notOwner})
	missing := storage.ErrAllMissing
	tries(t, "index alone", newPlace(t).openIndexOnly(t), nil, nil)
	tries(t, "its own, empty", own, nil, errFault)
	tries(t, "another's, empty", lost, nil, nil)
	tries(t, "a front end's, not mounted", front, missing, nil)
	note := filepath.Join(p.store, storage.OwnerName)
	write(t, note, "somebody\n")
	tries(t, "a front end's, without a name yet", front, nil, nil)
	items := []fake{{n: 1, content: "1"}, {n: 2, content: "2"}, {n: 3, content: "3"}}
	importAll(t, own, storage.ImportOptions{}, laid(t, items...))
	remove := func(name string) {
		t.Helper()
		if err := os.Remove(filepath.Join(p.store, name)); err != nil {
			t.Fatal(err)
		}
	}
	remove(storage.OwnerName)
	tries(t, "its own", own, nil, errFault)
	tries(t, "a front end's, without notes", front, nil, nil)
	for _, item := range items[1:] {
		remove(item.name())
	}
	write(t, note, "somebody\n")
	// Whatever the sample begins with, one is enough.
	for range 5 {
		tries(t, "with one nar", own, nil, errFault)
	}
	remove(items[0].name())
	tries(t, "without nars", own, missing, errFault)
	// To a front end, the owner has removed them.
	tries(t, "a front end's, without nars", front, nil, nil)
	tries(t, "another's, without nars", lost, nil, nil)
	remove(storage.OwnerName)
	if err := os.Remove(filepath.Join(p.store, storage.IdentityName)); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	tries(t, "a front end's, not mounted again", front, missing, nil)
	tries(t, "another's, not mounted", lost, missing, nil)
	// What has no nars can't lack any.
	for _, item := range items {
		if _, err := own.Remove(t.Context(), item.hash()); err != nil {
			t.Fatal(err)
		}
	}
	tries(t, "its own, empty again", own, nil, errFault)
}

// TestTryUnreadable has nars that are there, and can't be read.
func TestTryUnreadable(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	faults := &faultStore{at: -1}
	s := p.openWith(t, func(b storage.ByteStore) storage.ByteStore {
		faults.Directory = unwrap(b)
		return probed{faults}
	})
	importAll(t, s, storage.ImportOptions{}, laid(t, fake{n: 1, content: "1"}))
	faults.before = func() error { return errFault }
	tries(t, "all calls fail", s, errFault, errFault)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.TryReading(ctx); err == nil {
		t.Error("there is no error with a context that has ended")
	}
}
