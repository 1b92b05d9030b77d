package storage_test

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/space"
)

// plainly is a decoder that ignores the compression.
func plainly(_ context.Context, _ string, r io.Reader, _ int64) (io.ReadCloser, error) {
	return io.NopCloser(r), nil
}

// addRows adds the narinfos of items, without their nars.
func addRows(t testing.TB, p place, items ...fake) {
	t.Helper()
	x, err := index.Open(context.Background(), p.database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	err = x.Update(context.Background(), func(tx *index.Tx) error {
		for _, f := range items {
			if err := tx.Put(x.Prepare(f.parsed()), nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// spooled writes a file for Receive.
func spooled(t testing.TB, s *storage.Storage, content string) *os.File {
	t.Helper()
	directory, err := s.Spool(filepath.Join(t.TempDir(), "spool"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := os.CreateTemp(directory, "")
	if err == nil {
		_, err = file.WriteString(content)
	}
	if err == nil {
		err = file.Chmod(0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	return file
}

// bare is a byte store without optional capabilities.
type bare struct {
	hidden
	bytestore.Defaults
}

type hidden struct{ bytestore.Store }

// TestReceive: files are stored by a link and by a copy.
func TestReceive(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(bytestore.Store) bytestore.Store{
		"shared": nil, "copied": func(b bytestore.Store) bytestore.Store { return bare{hidden: hidden{b}} },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			sized, unsized := fake{n: 1, content: "sized"}, fake{n: 2, content: "unsized", claim: -1}
			addRows(t, p, sized, unsized)
			s := p.openWith(t, wrap)
			for _, f := range []fake{sized, unsized} {
				item := itemOf(t, s, f)
				file := spooled(t, s, f.content)
				for range 2 { // the second time, it is stored already
					if err := s.Receive(t.Context(), item, 0, file); err != nil {
						t.Fatal(err)
					}
				}
				before, err := file.Stat()
				if err != nil {
					t.Fatal(err)
				}
				after, err := os.Stat(filepath.Join(p.store, f.name()))
				if err != nil || os.SameFile(before, after) != (wrap == nil) {
					t.Errorf("%v; the same file: %v", err, os.SameFile(before, after))
				}
				// One that was shared was moved.
				if err := os.Remove(file.Name()); errors.Is(err, fs.ErrNotExist) != (wrap == nil) || wrap != nil && err != nil {
					t.Error(err)
				}
				wantServed(t, s, f)
			}
			wantFindings(t, s)
			totals, err := s.Totals(t.Context())
			if err != nil || totals.StoredNars != 2 || totals.StoredSize != int64(len("sizedunsized")) {
				t.Errorf("%+v, %v", totals, err)
			}
		})
	}
}

// TestReceiveRefused: files that must not be stored leave no trace.
func TestReceiveRefused(t *testing.T) {
	t.Parallel()
	f := fake{n: 1, content: "content"}
	other := f
	other.other = true
	for name, test := range map[string]struct {
		change func(t *testing.T, s *storage.Storage, p place)
		bytes  string
		want   error
	}{
		"removed": {func(t *testing.T, s *storage.Storage, p place) {
			for _, r := range removalsOf(t, s, f) {
				if r.Err != nil {
					t.Error(r.Err)
				}
			}
		}, f.content, storage.ErrNotWanted},
		"replaced": {func(t *testing.T, s *storage.Storage, p place) {
			wantOutcomes(t, importAll(t, s, importer.Options{Replace: true}, laid(t, other)), "1 replaced")
		}, f.content, storage.ErrNotWanted},
		"wrong size":   {func(*testing.T, *storage.Storage, place) {}, "other content", bytestore.ErrWrongSize},
		"at the limit": {func(t *testing.T, s *storage.Storage, p place) { setHardLimit(t, s, 3) }, f.content, space.ErrLimit},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			addRows(t, p, f)
			s := p.openTest(t)
			item := itemOf(t, s, f)
			test.change(t, s, p)
			file := spooled(t, s, test.bytes)
			if err := s.Receive(t.Context(), item, 0, file); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
			if err := os.Remove(file.Name()); err != nil {
				t.Error(err)
			}
			wantFindings(t, s)
		})
	}
}

func setHardLimit(t testing.TB, s *storage.Storage, limit int64) {
	t.Helper()
	if err := s.SetHardLimit(t.Context(), limit); err != nil {
		t.Fatal(err)
	}
}

func removalsOf(t testing.TB, s *storage.Storage, items ...fake) []storage.Removal {
	t.Helper()
	removals, err := s.RemoveAll(t.Context(), hashesOf(items), nil)
	if err != nil {
		t.Fatal(err)
	}
	return removals
}

// TestReserve: reserved bytes count for the limits.
func TestReserve(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	setHardLimit(t, s, 100)
	reserved, err := s.Reserve(t.Context(), 60)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reserve(t.Context(), 60); !errors.Is(err, space.ErrLimit) {
		t.Errorf("%v", err)
	}
	reserved.Release()
	reserved.Release()
	again, err := s.Reserve(t.Context(), 100)
	if err != nil {
		t.Fatal(err)
	}
	again.Release()
}

// TestAdopt: a stored file is recorded if it is the nar.
func TestAdopt(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	right, wrong, short := fake{n: 1, content: "right", nar: "right"}, fake{n: 2, content: "wrong", nar: "right"}, fake{n: 3, content: "short", nar: "short", claim: 6}
	addRows(t, p, right, wrong, short)
	s := p.openTest(t)
	layNars(t, p.store, right, wrong, short)
	for _, test := range []struct {
		fake
		lies bool
		want error
	}{{right, true, nil}, {wrong, true, narcheck.ErrWrongNar}, {short, false, nil}} {
		item := itemOf(t, s, test.fake)
		lies, err := s.HasUnrecorded(t.Context(), item, 0)
		if err != nil || lies != test.lies {
			t.Errorf("item %d: unrecorded: %v, %v", test.n, lies, err)
		}
		if !lies {
			continue
		}
		if err := s.Adopt(t.Context(), item, 0, plainly); !errors.Is(err, test.want) {
			t.Errorf("item %d: %v, want %v", test.n, err, test.want)
		}
	}
	wantServed(t, s, right)
	wantFindings(t, s, "unrecorded "+wrong.name(), "unrecorded "+short.name())
}

// TestSpool: files in the spool are counted, and recognized as temporary.
func TestSpool(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	spooled(t, s, strings.Repeat("x", 10_000))
	wantFindings(t, s, "temporary")
	if err := s.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if usage, _, err := s.Usage(t.Context()); err != nil || usage < 10_000 {
		t.Errorf("%d bytes, %v", usage, err)
	}
	// Other directories of the storage are not searched.
	q := newPlace(t)
	if _, err := q.openWith(t, func(b bytestore.Store) bytestore.Store { return bare{hidden: hidden{b}} }).Spool(""); err == nil {
		t.Error("a store without a spool has one")
	}
	// Nor are directories outside of the storage.
	if err := os.Symlink(t.TempDir(), filepath.Join(q.store, ".nar-herder-spool")); err != nil {
		t.Fatal(err)
	}
	if _, err := q.openTest(t).Spool(""); err == nil {
		t.Error("the spool is outside of the storage")
	}
}
