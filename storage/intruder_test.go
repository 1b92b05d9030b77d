package storage_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
)

// intrudedStore lets another process act while an addition is being prepared: before or
// after its nar is staged.
type intrudedStore struct {
	*faultStore
	before, after func() // each is called once
}

func (s *intrudedStore) call(f *func()) {
	if g := *f; g != nil {
		*f = nil
		g()
	}
}

func (s *intrudedStore) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	s.call(&s.before)
	staged, err := s.faultStore.Stage(ctx, name, from, size)
	s.call(&s.after)
	return staged, err
}

func (s *intrudedStore) StageFile(ctx context.Context, name string, file *os.File, size int64) (bytestore.Staged, error) {
	s.call(&s.before)
	staged, err := s.faultStore.StageFile(ctx, name, file, size)
	s.call(&s.after)
	return staged, err
}

func (s *intrudedStore) Flush(ctx context.Context, name string) error {
	s.call(&s.before)
	err := s.faultStore.Flush(ctx, name)
	s.call(&s.after)
	return err
}

// TestIntruders: the state of an item that an addition found before its transaction may be
// outdated. Even with a crash at any later step, no row may claim missing bytes.
func TestIntruders(t *testing.T) {
	t.Parallel()
	one := fake{n: 1, content: "the first nar"}
	smaller := fake{n: 1, content: "first", note: "smaller"}
	zstd := fake{n: 1, content: "zstd nar", kind: "zstd"}
	rebuilt := fake{n: 1, content: "another, longer nar", other: true}
	replace := importer.Options{Replace: true}
	intruders := map[string]operation{
		"adds":     {lay: []fake{one}, do: adding(importer.Options{}, one)},
		"updates":  {lay: []fake{zstd}, do: adding(importer.Options{}, zstd)},
		"replaces": {lay: []fake{rebuilt}, do: adding(replace, rebuilt)},
		"removes":  {do: removing(one)},
		"is first": {}, // it does the same
	}
	for _, before := range [][]fake{nil, {one}} {
		for name, intruder := range intruders {
			for _, added := range []fake{one, smaller, rebuilt} {
				for _, options := range []importer.Options{{}, replace} {
					for _, late := range []bool{false, true} {
						t.Run(fmt.Sprintf("%d known/%s/%s/replace %v/late %v", len(before), name, added.content, options.Replace, late), func(t *testing.T) {
							t.Parallel()
							intrudeAt(t, before, intruder, added, options, late, -1)
							for at := 1; stride == 1 && intrudeAt(t, before, intruder, added, options, late, at); at += 2 {
							}
						})
					}
				}
			}
		}
	}
}

// intrudeAt adds an item with an intruder and a crash at a step, negative for none. It
// returns false if there was no crash.
func intrudeAt(t *testing.T, before []fake, intruder operation, added fake, options importer.Options, late bool, at int) bool {
	t.Helper()
	p := memoryPlace(t)
	top := filepath.Dir(p.database)
	known, intruding, source := top+"/known", top+"/intruding", top+"/source"
	for directory, items := range map[string][]fake{known: before, intruding: intruder.lay, source: {added}} {
		if err := os.Mkdir(directory, 0o755); err != nil {
			t.Fatal(err)
		}
		lay(t, directory, items...)
	}
	other, closeOther, err := p.open(nil)
	if err != nil {
		t.Fatal(err)
	}
	importAll(t, other, importer.Options{}, known)
	intrude := func() {
		do, from := intruder.do, intruding
		if do == nil {
			do, from = adding(options, added), source
		}
		if err := do(other, from); err != nil {
			t.Errorf("the intruder: %v", err)
		}
	}
	store := &intrudedStore{faultStore: &faultStore{mode: power, at: at}}
	if late {
		store.after = intrude
	} else {
		store.before = intrude
	}
	s, closeAll, err := p.open(func(bytes bytestore.Store) bytestore.Store {
		store.Directory = bytes.(*directory.Directory)
		return store
	})
	if err != nil {
		t.Fatal(err)
	}
	crashed, err := try(func() error { return adding(options, added)(s, source) })
	if !crashed && err != nil {
		t.Errorf("add: %v", err)
	}
	if err := errors.Join(closeAll(), closeOther()); err != nil {
		t.Error(err)
	}

	s, closeAll, err = p.open(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, finding := range findings(t, s) {
		kind, _, _ := strings.Cut(finding, " ")
		if kind == "missing" || kind == "wrong size" || kind == "wrong" || !crashed && kind == "temporary" {
			t.Errorf("crash at step %d: check finds %q", at, finding)
		}
	}
	if item, err := s.Item(t.Context(), added.hash()); err == nil && !crashed && item.Stored == 0 {
		t.Errorf("nothing is stored of the item %q", item.Text)
	}
	if !crashed && !has(filepath.Join(source, added.name()), added.content) && !has(filepath.Join(p.store, added.name()), added.content) && !options.Replace {
		// It may be removed only if another file has its content.
		if _, err := stored(s, added.hash(), 0); err != nil && !errors.Is(err, storage.ErrNotFound) {
			t.Errorf("the nar is lost: %v", err)
		}
	}
	if err := closeAll(); err != nil {
		t.Error(err)
	}
	return crashed
}
