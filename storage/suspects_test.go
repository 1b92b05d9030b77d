package storage_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// TestCheckReading: a check of an index that is open for reading only omits files that are
// corrected while it waits, and finds those that stay wrong.
func TestCheckReading(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	items := []fake{{n: 1, content: "one"}, {n: 2, content: "two"}, {n: 3, content: "three"}}
	writing, closeAll, err := p.open(nil)
	if err != nil {
		t.Fatal(err)
	}
	importAll(t, writing, importer.Options{}, laid(t, items...))
	if err := closeAll(); err != nil {
		t.Fatal(err)
	}
	bytes, err := directory.Open(p.store)
	if err != nil {
		t.Fatal(err)
	}
	defer bytes.Close()
	x, err := index.Open(t.Context(), p.database, index.Options{Access: index.Read})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := storage.New(x, bytes, storage.Options{})
	file := func(f fake) string { return filepath.Join(p.store, f.name()) }
	wantFindings(t, s)

	write(t, filepath.Join(p.store, "nar/lzip", fake{n: 9}.path().BaseName()), "stranger")
	if err := errors.Join(os.Remove(file(items[0])), os.Remove(file(items[1]))); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		go func() {
			time.Sleep(time.Millisecond)
			write(t, file(items[0]), items[0].content)
		}()
		wantFindings(t, s, "missing "+items[1].name(), "stranger nar/lzip/"+fake{n: 9}.path().BaseName())
	})
}
