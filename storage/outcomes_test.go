package storage_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nar-herder/storage"
	"nar-herder/storage/importer"
)

// TestOutcomes imports items into storages that have related items.
func TestOutcomes(t *testing.T) {
	t.Parallel()
	one := fake{n: 1, content: "the nar"}
	signed := fake{n: 1, content: "the nar", note: "signed anew"}
	smaller := fake{n: 1, content: "nar", note: "compressed better"}
	zstd := fake{n: 1, content: "zstd nar", kind: "zstd"}
	both := fake{n: 1, content: "the nar", extra: []fake{{kind: "zstd", content: "zstd nar"}}}
	rebuilt := fake{n: 1, content: "another nar", other: true}
	sameSize := fake{n: 1, content: "THE NAR", other: true}
	unsized := fake{n: 1, content: "unsized", claim: -1}
	replace := importer.Options{Replace: true}

	tests := []struct {
		name    string
		before  func(t *testing.T, p place, s *storage.Storage) // nil for none
		item    fake
		options importer.Options
		want    importer.Outcome
		served  fake
		stays   bool     // in the source, although it should be moved
		dropped []string // names in the storage that are removed
	}{
		{name: "new", item: one, want: importer.Added, served: one},
		{name: "new, replace", item: one, options: replace, want: importer.Added, served: one},
		{name: "new, two files", item: both, want: importer.Added, served: both},
		{name: "new, without size", item: unsized, want: importer.Added, served: unsized},
		{name: "new, empty nar", item: fake{n: 1}, want: importer.Added, served: fake{n: 1}},
		{name: "again", before: known(one), item: one, want: importer.Known, served: one},
		{name: "again, without size", before: known(unsized), item: unsized, want: importer.Known, served: unsized},
		{name: "again, replace", before: known(one), item: one, options: replace, want: importer.Known, served: one},
		{name: "bytes were lost", before: damaged(one, func(file string) error { return os.Remove(file) }),
			item: one, want: importer.Completed, served: one},
		{name: "bytes were cut off", before: damaged(one, func(file string) error { return os.Truncate(file, 3) }),
			item: one, want: importer.Completed, served: one},
		{name: "unsized bytes changed", before: damaged(unsized, func(file string) error { return os.Truncate(file, 3) }),
			item: unsized, want: importer.Completed, served: fake{n: 1, content: "uns", claim: -1}, stays: true},
		{name: "one of two was lost", before: func(t *testing.T, p place, s *storage.Storage) {
			known(both)(t, p, s)
			if err := os.Remove(filepath.Join(p.store, zstd.name())); err != nil {
				t.Fatal(err)
			}
		}, item: both, want: importer.Completed, served: both, stays: true},
		{name: "new signature", before: known(one), item: signed, want: importer.Updated, served: signed},
		{name: "other size", before: known(one), item: smaller, want: importer.Updated, served: smaller},
		{name: "other compression", before: known(one), item: zstd, want: importer.Updated, served: zstd, dropped: []string{one.name()}},
		{name: "one more compression", before: known(one), item: both, want: importer.Updated, served: both, stays: true},
		{name: "one compression less", before: known(both), item: zstd, want: importer.Updated, served: zstd, dropped: []string{one.name()}},
		{name: "other nar", before: known(one), item: rebuilt, want: importer.Kept, served: one, stays: true},
		{name: "other nar of the same size", before: known(one), item: sameSize, want: importer.Kept, served: one, stays: true},
		{name: "other nar, replace", before: known(one), item: rebuilt, options: replace, want: importer.Replaced, served: rebuilt},
		{name: "other nar of the same size, replace", before: known(one), item: sameSize, options: replace, want: importer.Replaced, served: sameSize},
		{name: "other nar, replaced back", before: known(rebuilt), item: one, options: replace, want: importer.Replaced, served: one},
		{name: "a stranger of the size is there", before: stranger(one.name(), "the nar"), item: one, want: importer.Added, served: one, stays: true},
		{name: "a stranger of another size is there", before: stranger(one.name(), "x"), item: one, want: importer.Added, served: one},
	}
	for _, test := range tests {
		for _, keep := range []bool{false, true} {
			name := test.name
			if keep {
				name += ", kept"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				p := newPlace(t)
				s := p.openTest(t)
				if test.before != nil {
					test.before(t, p, s)
				}
				source := laid(t, test.item)
				options := test.options
				options.Keep = keep
				r := importAll(t, s, options, source)[test.item.hash().String()+".narinfo"]
				if r.Outcome != test.want || r.Err != nil {
					t.Errorf("%v, %q, %v; want %v", r.Outcome, r.Note, r.Err, test.want)
				}
				if noted := r.Outcome == importer.Updated || r.Outcome == importer.Kept || r.Outcome == importer.Replaced; noted != (r.Note != "") {
					t.Errorf("%v has the note %q", r.Outcome, r.Note)
				}
				wantServed(t, s, test.served)
				wantFindings(t, s)
				for i, file := range test.item.files() {
					name := filepath.Join(source, file.name())
					if stays := keep || test.stays && i == 0; !stays && !gone(name) && r.Bytes > 0 && i == 0 {
						t.Errorf("%s was not moved", file.name())
					} else if stays && !has(name, file.content) && (keep || test.want == importer.Kept) {
						t.Errorf("%s was removed from the source", file.name())
					}
				}
				for _, name := range test.dropped {
					if !gone(filepath.Join(p.store, name)) {
						t.Errorf("%s is of no more use, and still in the storage", name)
					}
				}
				wantOutcomes(t, importAll(t, s, options, laid(t, test.served)), "1 known")
			})
		}
	}
}

// known imports an item beforehand.
func known(f fake) func(*testing.T, place, *storage.Storage) {
	return func(t *testing.T, _ place, s *storage.Storage) {
		wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, f)), "1 added")
	}
}

// damaged imports an item, and then changes its nar behind the index.
func damaged(f fake, damage func(file string) error) func(*testing.T, place, *storage.Storage) {
	return func(t *testing.T, p place, s *storage.Storage) {
		known(f)(t, p, s)
		if err := damage(filepath.Join(p.store, f.name())); err != nil {
			t.Fatal(err)
		}
		if _, err := stored(s, f.hash(), 0); !errors.Is(err, storage.ErrMismatch) {
			t.Errorf("opened although it is damaged: %v, want ErrMismatch", err)
		}
	}
}

// stranger puts an unreferenced file into the storage.
func stranger(name, content string) func(*testing.T, place, *storage.Storage) {
	return func(t *testing.T, p place, _ *storage.Storage) { write(t, filepath.Join(p.store, name), content) }
}

// TestReplaceInPlace: the nar of a replacing narinfo is in the storage already, which is
// also the directory to search.
func TestReplaceInPlace(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	known(fake{n: 1, content: "the nar"})(t, p, s)
	rebuilt := fake{n: 1, content: "THE NAR", other: true}
	lay(t, p.store, rebuilt)
	wantOutcomes(t, importAll(t, s, importer.Options{Replace: true}, p.store), "1 replaced")
	wantServed(t, s, rebuilt)
	wantFindings(t, s, "stranger "+rebuilt.hash().String()+".narinfo")
}

// TestWithoutBytes: a storage may keep no nars.
func TestWithoutBytes(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	_ = p.openTest(t)
	s := p.openIndexOnly(t)
	f := fake{n: 1, content: "the nar"}
	source := laid(t, f)
	wantOutcomes(t, importAll(t, s, importer.Options{}, source), "1 added")
	wantOutcomes(t, importAll(t, s, importer.Options{}, source), "1 known")
	if _, err := stored(s, f.hash(), 0); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("%v, want ErrNotStored", err)
	}
	if !has(filepath.Join(source, f.name()), f.content) {
		t.Error("the nar was taken from the source")
	}
	wantFindings(t, s)
	if _, err := s.Remove(t.Context(), f.hash()); err != nil {
		t.Error(err)
	}
}

// TestSharedFile: two items name one file. Neither may take it from the other.
func TestSharedFile(t *testing.T) {
	t.Parallel()
	for _, order := range [][2]int{{1, 2}, {2, 1}} {
		p := newPlace(t)
		s := p.openTest(t)
		items := map[int]fake{1: {n: 1, content: "the nar"}}
		items[2] = fake{n: 2, content: "the nar", url: items[1].name()}
		first, second := items[order[0]], items[order[1]]
		importAll(t, s, importer.Options{}, laid(t, first))
		importAll(t, s, importer.Options{}, laid(t, second))
		wantOnlyUnreferenced(t, s)
		_, err := s.Remove(t.Context(), first.hash())
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			t.Error(err)
		}
		wantOnlyUnreferenced(t, s)
	}
}

// TestOddURLs: nars under other names than Guix's are served, or are an error, but no row
// claims a lost file.
func TestOddURLs(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"nar/lzip/foo.nar.lz", "0hash.nar.xz", "nar/a/b/00000000000000000000000000000001-item-1", "nar/lzip/" + fake{n: 9}.path().BaseName(),
		"nar/00000000000000000000000000000001", "a/b/c/d/e/00000000000000000000000000000001-item-1", "nar/.nar-herder-x"} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			p := newPlace(t)
			s := p.openTest(t)
			f := fake{n: 1, content: "the nar", url: url}
			r := importAll(t, s, importer.Options{Keep: true}, laid(t, f))[f.hash().String()+".narinfo"]
			if r.Outcome != importer.Added {
				if r.Outcome != importer.Failed || r.Err == nil {
					t.Errorf("%v, %v", r.Outcome, r.Err)
				}
				return
			}
			wantServed(t, s, f)
			wantFindings(t, s)
			f.note = "signed anew"
			wantOutcomes(t, importAll(t, s, importer.Options{Keep: true}, laid(t, f)), "1 updated")
			wantServed(t, s, f)
			wantFindings(t, s)
			if _, err := s.Remove(t.Context(), f.hash()); err != nil {
				t.Error(err)
			}
			wantFindings(t, s)
		})
	}
}

// TestURLsThatLeadOut: a narinfo with such a URL has no nar here, and nothing is read for
// it.
func TestURLsThatLeadOut(t *testing.T) {
	t.Parallel()
	for _, url := range []string{"../secret", "nar/../../secret", "%2e%2e/secret", "nar/%2e%2e/%2e%2e/secret", "nar/..%2f..%2fsecret",
		"//host/secret", "http://host/secret", "/../secret", "nar//secret", "nar/%00", "nar/./secret", "nar/secret/", "file:///etc/passwd", "."} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			for _, directory := range []string{"", "source", "store"} {
				write(t, filepath.Join(top, directory, "secret"), "secret!")
			}
			p := place{filepath.Join(top, "db"), filepath.Join(top, "store")}
			s := p.openTest(t)
			f := fake{n: 1, content: "secret!", url: url}
			write(t, filepath.Join(top, "source", "x.narinfo"), f.text())
			r := importAll(t, s, importer.Options{}, filepath.Join(top, "source"))["x.narinfo"]
			if r.Outcome != importer.Failed || r.Err == nil || !strings.Contains(r.Err.Error(), url) {
				t.Errorf("%v, %v; want it to fail and name the URL", r.Outcome, r.Err)
			}
			if errors.Is(r.Err, fs.ErrNotExist) {
				t.Errorf("%v: the file was looked for", r.Err)
			}
			if !has(filepath.Join(top, "secret"), "secret!") || !has(filepath.Join(top, "source", "secret"), "secret!") {
				t.Error("the file was taken")
			}
		})
	}
}

// TestUpdatedWithoutStorage: a process without the storage replaces a narinfo, and stored
// files stay recorded.
func TestUpdatedWithoutStorage(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	item := fake{n: 1, content: "its nar"}
	wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, item)), "1 added")
	again := item
	again.note = "signed again"
	wantOutcomes(t, importAll(t, p.openIndexOnly(t), importer.Options{}, laid(t, again)), "1 updated")
	wantServed(t, s, again)
	wantFindings(t, s)
}
