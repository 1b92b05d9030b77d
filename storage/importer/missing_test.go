package importer_test

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

const (
	base = "53vg2c3aabp5j4glak33kgdjqgf20dlp-gtk+-3.24.43"
	// The test's decoder copies, so the content in each compression is the nar.
	content = "the nar"
)

// newStorage makes an empty storage.
func newStorage(t *testing.T) *storage.Storage {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/store", 0o755); err != nil {
		t.Fatal(err)
	}
	bytes, err := directory.Open(dir + "/store")
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), dir+"/index.db", index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), bytes.Close()); err != nil {
			t.Error(err)
		}
	})
	return storage.New(x, bytes, storage.Options{})
}

// newCache lays down a cache of guix publish with one item in two compressions.
func newCache(t *testing.T) (cache string) {
	t.Helper()
	cache = t.TempDir()
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: %d\nReferences: \n", base, narinfo.NarHash(sha256.Sum256([]byte(content))), len(content))
	for _, kind := range []string{"lzip", "zstd"} {
		text += fmt.Sprintf("URL: nar/%s/%s\nCompression: %s\nFileSize: %d\n", kind, strings.ReplaceAll(base, "+", "%2B"), kind, len(content))
	}
	for _, kind := range []string{"lzip", "zstd"} {
		stem := filepath.Join(cache, kind, base)
		if err := errors.Join(os.Mkdir(filepath.Dir(stem), 0o755), os.WriteFile(stem+".narinfo", []byte(text), 0o644), os.WriteFile(stem+".nar", []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return cache
}

// importsOne imports the cache, and returns the result of its item.
func importsOne(t *testing.T, s *storage.Storage, cache string, options importer.Options) importer.Result {
	t.Helper()
	var results []importer.Imported
	if err := importer.New(s).Import(t.Context(), []string{cache}, options, func(i importer.Imported) { results = append(results, i) }); err != nil {
		t.Fatal(err)
	}
	if len(results) != 1 {
		t.Fatalf("%d results: %+v", len(results), results)
	}
	return results[0].Result
}

// during returns a decoder that calls f once, when the first nar is read.
func during(f func()) func(context.Context, string, io.Reader, int64) (io.ReadCloser, error) {
	var once sync.Once
	return func(_ context.Context, _ string, from io.Reader, _ int64) (io.ReadCloser, error) {
		once.Do(f)
		return io.NopCloser(from), nil
	}
}

// TestNarVanishes: guix publish deletes a nar while another of the item is read.
func TestNarVanishes(t *testing.T) {
	t.Parallel()
	for _, allow := range []bool{false, true} {
		t.Run(fmt.Sprintf("allowed %v", allow), func(t *testing.T) {
			t.Parallel()
			s, cache := newStorage(t), newCache(t)
			r := importsOne(t, s, cache, importer.Options{AllowMissing: allow, Decode: during(func() {
				if err := os.Remove(filepath.Join(cache, "zstd", base+".nar")); err != nil {
					t.Error(err)
				}
			})})
			path, err := narinfo.ParseStorePath("/gnu/store/" + base)
			if err != nil {
				t.Fatal(err)
			}
			item, err := s.Item(t.Context(), path.Hash)
			if !allow {
				if r.Outcome != importer.Failed || !strings.Contains(r.Err.Error(), "nar/zstd/"+base+" was not found") || !errors.Is(err, storage.ErrNotFound) {
					t.Errorf("%v, %v; %+v, %v", r.Outcome, r.Err, item, err)
				}
			} else if err != nil || r.Outcome != importer.Added || r.Missing != 1 || item.Stored != 1 || item.Dropped != 2 {
				t.Errorf("%+v, %+v, %v", r, item, err)
			}
		})
	}
}

// TestMissingNarComes: another process imports the missing nar meanwhile, so it isn't dropped.
func TestMissingNarComes(t *testing.T) {
	t.Parallel()
	s, partial, complete := newStorage(t), newCache(t), newCache(t)
	if err := os.Remove(filepath.Join(partial, "zstd", base+".nar")); err != nil {
		t.Fatal(err)
	}
	var result importer.Result
	r := importsOne(t, s, partial, importer.Options{AllowMissing: true, Decode: during(func() {
		result = importsOne(t, s, complete, importer.Options{Decode: during(func() {})})
	})})
	path, err := narinfo.ParseStorePath("/gnu/store/" + base)
	if err != nil {
		t.Fatal(err)
	}
	item, err := s.Item(t.Context(), path.Hash)
	if err != nil || result.Outcome != importer.Added || r.Outcome == importer.Failed || item.Stored != 3 || item.Dropped != 0 {
		t.Errorf("%+v, %+v, %+v, %v", result, r, item, err)
	}
}

// TestItemOfUpstream: an item that came from an upstream is one of this instance once it is
// imported, so that it isn't evicted.
func TestItemOfUpstream(t *testing.T) {
	t.Parallel()
	s, cache := newStorage(t), newCache(t)
	importsOne(t, s, cache, importer.Options{})
	path, err := narinfo.ParseStorePath("/gnu/store/" + base)
	if err != nil {
		t.Fatal(err)
	}
	err = s.Index().Update(t.Context(), func(tx *index.Tx) error {
		origin, err := tx.Origin("https://ci.example.org")
		if err != nil {
			return err
		}
		return tx.SetOrigin(path.Hash, origin, time.Now())
	})
	if item, itemErr := s.Item(t.Context(), path.Hash); err != nil || itemErr != nil || item.Origin == 0 {
		t.Fatalf("%+v, %v, %v", item, err, itemErr)
	}
	r := importsOne(t, s, cache, importer.Options{})
	item, err := s.Item(t.Context(), path.Hash)
	if err != nil || r.Outcome != importer.Known || item.Origin != 0 || !item.FreshUntil.IsZero() {
		t.Errorf("%+v, %+v, %v", r, item, err)
	}
}

// TestDroppedNarFound: a nar that was dropped, and is still stored, is imported again.
func TestDroppedNarFound(t *testing.T) {
	t.Parallel()
	s, cache := newStorage(t), newCache(t)
	importsOne(t, s, cache, importer.Options{})
	path, err := narinfo.ParseStorePath("/gnu/store/" + base)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Index().Update(t.Context(), func(tx *index.Tx) error { return tx.SetDropped(path.Hash, 2, time.Now()) }); err != nil {
		t.Fatal(err)
	}
	r := importsOne(t, s, cache, importer.Options{})
	item, err := s.Item(t.Context(), path.Hash)
	if err != nil || r.Outcome != importer.Completed || item.Dropped != 0 || item.Stored != 3 || !item.DropAfter.IsZero() {
		t.Errorf("%+v, %+v, %v", r, item, err)
	}
}

// TestKnownItemLosesNar: a nar that a known item has lost is counted once as missing.
func TestKnownItemLosesNar(t *testing.T) {
	t.Parallel()
	s, cache := newStorage(t), newCache(t)
	importsOne(t, s, cache, importer.Options{})
	path, err := narinfo.ParseStorePath("/gnu/store/" + base)
	if err != nil {
		t.Fatal(err)
	}
	name := "nar/zstd/" + base
	err = errors.Join(s.NarStore().Remove(t.Context(), name), os.Remove(filepath.Join(cache, "zstd", base+".nar")),
		s.Index().Update(t.Context(), func(tx *index.Tx) error { return tx.SetStored(path.Hash, 1, nil, time.Time{}) }))
	if err != nil {
		t.Fatal(err)
	}
	for _, missing := range []int{1, 0} {
		r := importsOne(t, s, cache, importer.Options{AllowMissing: true})
		item, err := s.Item(t.Context(), path.Hash)
		if err != nil || r.Outcome != importer.Known || r.Missing != missing || item.Dropped != 2 || item.Stored != 1 {
			t.Errorf("want %d missing: %+v, %+v, %v", missing, r, item, err)
		}
	}
}
