// Package removaltest has a small storage for tests of removals.
package removaltest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// Place is a storage of a test.
type Place struct {
	*storage.Storage
	Index *index.Index
	Dir   string
}

// Open makes a storage in a directory.
func Open(t testing.TB, dir string) *Place {
	t.Helper()
	store := filepath.Join(dir, "store")
	if err := os.MkdirAll(store, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := directory.Open(store)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(context.Background(), filepath.Join(dir, "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	return &Place{storage.New(x, files, storage.Options{}), x, dir}
}

// Path returns the store path of an item.
func Path(n int) narinfo.StorePath {
	path, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-item-%d", n, n))
	if err != nil {
		panic(err)
	}
	return path
}

// Hashes returns the hashes of items.
func Hashes(numbers ...int) (hashes []narinfo.PathHash) {
	for _, n := range numbers {
		hashes = append(hashes, Path(n).Hash)
	}
	return hashes
}

// File returns the path of an item's nar.
func (p *Place) File(n int) string {
	return filepath.Join(p.Dir, "store", "nar", Path(n).BaseName())
}

// AddItem adds an item with references.
func (p *Place) AddItem(t testing.TB, n int, references ...int) {
	t.Helper()
	text := fmt.Sprintf("StorePath: %s\nNarHash: sha256:%s\nNarSize: 5\nReferences:", Path(n), strings.Repeat("0", 52))
	for _, reference := range references {
		text += " " + Path(reference).BaseName()
	}
	text += fmt.Sprintf("\nURL: nar/%s\nCompression: none\nFileSize: 5\n", Path(n).BaseName())
	parsed, err := narinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(p.File(n)), 0o755), os.WriteFile(p.File(n), []byte("bytes"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if r := importer.New(p.Storage).Add(t.Context(), &importer.Addition{Narinfo: parsed}); r.Err != nil {
		t.Fatal(r.Err)
	}
}

// Pin pins an item.
func (p *Place) Pin(t testing.TB, n int) {
	t.Helper()
	err := p.Index.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Pin(Path(n).Hash, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Has reports whether the index has the item. It asserts that the same is true of its nar.
func (p *Place) Has(t testing.TB, n int) bool {
	t.Helper()
	_, rowErr := p.Item(t.Context(), Path(n).Hash)
	_, fileErr := os.Stat(p.File(n))
	if rowErr != nil && !errors.Is(rowErr, storage.ErrNotFound) || (rowErr == nil) != (fileErr == nil) {
		t.Errorf("item %d: row %v, file %v", n, rowErr, fileErr)
	}
	return rowErr == nil
}
