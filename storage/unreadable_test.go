package storage_test

import (
	"context"
	"errors"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/recount"
)

// unreadable is a store with a directory that can't be read, even by root.
type unreadable struct {
	bytestore.Store
	directory string
}

func (u unreadable) Stat(ctx context.Context, name string) (bytestore.Info, error) {
	if strings.HasPrefix(name, u.directory+"/") {
		return bytestore.Info{}, fs.ErrPermission
	}
	return u.Store.Stat(ctx, name)
}

func (u unreadable) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) {
		if !yield(bytestore.Info{Name: u.directory}, fs.ErrPermission) {
			return
		}
		for info, err := range u.Store.List(ctx) {
			if !strings.HasPrefix(info.Name, u.directory+"/") && !yield(info, err) {
				return
			}
		}
	}
}

// TestUnreadableDirectory: Recount and IsMounted skip a directory that can't be read, and
// nothing in it counts as missing.
func TestUnreadableDirectory(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := []fake{{n: 1, content: "one"}, {n: 2, content: "two", kind: "zstd"}, {n: 3, content: "three", kind: "zstd"}}
	s := p.openWith(t, func(bytes bytestore.Store) bytestore.Store { return unreadable{bytes, "nar/lzip"} })
	importAll(t, p.openTest(t), importer.Options{}, laid(t, items...))
	if err := os.Remove(filepath.Join(p.store, items[2].name())); err != nil {
		t.Fatal(err)
	}
	if err := s.IsMounted(t.Context()); err != nil {
		t.Error(err)
	}
	if counted, err := recount.Claims(t.Context(), s, func() {}); err != nil || counted != (recount.Counts{Missing: 1}) {
		t.Errorf("%+v, %v; want 1 missing", counted, err)
	}
	if err := os.Remove(filepath.Join(p.store, items[1].name())); err != nil {
		t.Fatal(err)
	}
	// All readable files are missing: the administrator must decide.
	if err := s.IsMounted(t.Context()); !errors.Is(err, storage.ErrAllMissing) {
		t.Errorf("%v, want ErrAllMissing", err)
	}
	wantServed(t, p.openTest(t), items[0])
}
