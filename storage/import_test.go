package storage_test

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

var corpora = []string{"../testdata/published", "../testdata/published-multi", "../testdata/published-none"}

// narinfos parses the narinfo files of a directory.
func narinfos(t testing.TB, directory string) []*narinfo.Narinfo {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(directory, "*.narinfo"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no narinfos in %s, %v", directory, err)
	}
	var parsed []*narinfo.Narinfo
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n, err := narinfo.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, n)
	}
	return parsed
}

// wantCorpus asserts that all items of a directory are served. If two compressed forms of a
// nar have the same size, either is right.
func wantCorpus(t *testing.T, s *storage.Storage, corpus string, exact bool) {
	t.Helper()
	for _, n := range narinfos(t, corpus) {
		text, err := s.Text(t.Context(), n.StorePath.Hash)
		if err != nil || !bytes.Equal(text, n.Text) {
			t.Errorf("%s: %q, %v", n.StorePath, text, err)
		}
		for i, file := range n.Files {
			path, err := file.Path()
			if err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(filepath.Join(corpus, path))
			if err != nil {
				t.Fatal(err)
			}
			got, err := stored(s, n.StorePath.Hash, i)
			if err != nil || len(got) != len(want) || exact && sha256.Sum256([]byte(got)) != sha256.Sum256(want) {
				t.Errorf("%s: %d bytes, %v; want %d", path, len(got), err, len(want))
			}
		}
	}
}

func TestImportCorpus(t *testing.T) {
	t.Parallel()
	for _, corpus := range corpora {
		t.Run(filepath.Base(corpus), func(t *testing.T) {
			t.Parallel()
			count := len(narinfos(t, corpus))
			s := newPlace(t).openTest(t)
			wantOutcomes(t, importAll(t, s, importer.Options{Keep: true}, corpus), fmt.Sprintf("%d added", count))
			wantCorpus(t, s, corpus, true) // this also shows that it was kept
			wantFindings(t, s)
			wantOutcomes(t, importAll(t, s, importer.Options{Keep: true}, corpus), fmt.Sprintf("%d known", count))
			totals, err := s.Totals(t.Context())
			if err != nil || totals.Items != int64(count) {
				t.Errorf("totals are %+v, %v", totals, err)
			}
		})
		t.Run("moving "+filepath.Base(corpus), func(t *testing.T) {
			t.Parallel()
			source := copyTree(t, corpus)
			s := newPlace(t).openTest(t)
			results := importAll(t, s, importer.Options{}, source)
			wantOutcomes(t, results, fmt.Sprintf("%d added", len(results)))
			wantCorpus(t, s, corpus, true)
			wantFindings(t, s)
			err := filepath.WalkDir(source, func(file string, entry fs.DirEntry, err error) error {
				if err == nil && entry.Type().IsRegular() && !strings.HasSuffix(file, ".narinfo") {
					t.Errorf("%s was not moved", file)
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
			if left := narinfos(t, source); len(left) != len(results) {
				t.Errorf("%d narinfos are left of %d", len(left), len(results))
			}
		})
	}
}

// TestImportAllTogether: three directories have items in common, with other texts and files
// under the same names.
func TestImportAllTogether(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	failed := func(i importer.Imported) {
		if i.Outcome == importer.Failed {
			t.Errorf("%s: %v", i.File, i.Err)
		}
	}
	for range 3 {
		if err := importer.New(s).Import(t.Context(), corpora, importer.Options{Keep: true}, failed); err != nil {
			t.Fatal(err)
		}
		wantFindings(t, s)
	}
	// In any order, the last one counts.
	for _, corpus := range corpora {
		for file, r := range importAll(t, s, importer.Options{Keep: true}, corpus) {
			if r.Outcome != importer.Known && r.Outcome != importer.Updated {
				t.Errorf("%s: %v, %v", file, r.Outcome, r.Err)
			}
		}
		wantCorpus(t, s, corpus, false)
		wantFindings(t, s)
	}
}

// TestImportLayouts: the places where nars are looked for.
func TestImportLayouts(t *testing.T) {
	t.Parallel()
	f := fake{n: 1, content: "content"}
	tests := map[string]func(t *testing.T, p place, source string) (names []string){
		"in the storage": func(t *testing.T, p place, source string) []string {
			write(t, source+"/x.narinfo", f.text())
			layNars(t, p.store, f)
			return []string{source}
		},
		"narinfo in the storage, too": func(t *testing.T, p place, _ string) []string {
			lay(t, p.store, f)
			return []string{p.store}
		},
		"beside": func(t *testing.T, _ place, source string) []string {
			lay(t, source, f)
			return []string{source}
		},
		"beside, far below": func(t *testing.T, _ place, source string) []string {
			lay(t, source+"/a/b/c", f)
			return []string{source}
		},
		"below the directory named": func(t *testing.T, _ place, source string) []string {
			write(t, source+"/cache/lzip/"+f.hash().String()+".narinfo", f.text())
			layNars(t, source, f)
			return []string{source}
		},
		"file named": func(t *testing.T, _ place, source string) []string {
			lay(t, source, f)
			return []string{source + "/" + f.hash().String() + ".narinfo"}
		},
		"file of any name": func(t *testing.T, _ place, source string) []string {
			write(t, source+"/some-file", f.text())
			layNars(t, source, f)
			return []string{source + "/some-file"}
		},
		"directory with a slash": func(t *testing.T, _ place, source string) []string {
			lay(t, source, f)
			return []string{source + "/"}
		},
		"link to the directory": func(t *testing.T, _ place, source string) []string {
			lay(t, source+"/real", f)
			if err := os.Symlink("real", source+"/link"); err != nil {
				t.Fatal(err)
			}
			return []string{source + "/link"}
		},
		"named twice": func(t *testing.T, _ place, source string) []string {
			lay(t, source, f)
			return []string{source, source + "/" + f.hash().String() + ".narinfo"}
		},
	}
	for name, layOut := range tests {
		for _, keep := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, keep %v", name, keep), func(t *testing.T) {
				t.Parallel()
				p := newPlace(t)
				names := layOut(t, p, t.TempDir())
				s := p.openTest(t)
				results := 0
				err := importer.New(s).Import(t.Context(), names, importer.Options{Keep: keep}, func(i importer.Imported) {
					if results++; i.Outcome != importer.Added && i.Outcome != importer.Known {
						t.Errorf("%s: %v, %v", i.File, i.Outcome, i.Err)
					}
				})
				if err != nil || results == 0 {
					t.Errorf("%d results, %v", results, err)
				}
				wantServed(t, s, f)
				for _, finding := range findings(t, s) {
					if !strings.HasSuffix(finding, ".narinfo") {
						t.Errorf("check finds %q", finding)
					}
				}
			})
		}
	}
}

func TestImportTags(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	source := laid(t, fake{n: 1, content: "1"}, fake{n: 2, content: "2"})
	for _, value := range []string{"1", "2"} { // known items get tags, too
		importAll(t, s, importer.Options{Keep: true, Tags: []index.Tag{{Key: "job", Value: value}}}, source)
		count := 0
		for _, err := range s.Items(t.Context(), index.Tag{Key: "job", Value: value}) {
			if err != nil {
				t.Fatal(err)
			}
			count++
		}
		if count != 2 {
			t.Errorf("%d items have the tag %s, want 2", count, value)
		}
	}
}

// TestWithReferences: closures in any order, and incomplete ones.
func TestWithReferences(t *testing.T) {
	t.Parallel()
	options := importer.Options{WithReferences: true}
	// A chain in reverse order of dependencies. Each item also refers to itself.
	var chain []fake
	for n := range 15 {
		f := fake{n: n, content: fmt.Sprint("nar ", n), refs: []int{n, n + 1}}
		if n == 14 {
			f.refs = []int{n}
		}
		chain = append(chain, f)
	}
	t.Run("chain", func(t *testing.T) {
		t.Parallel()
		s := newPlace(t).openTest(t)
		wantOutcomes(t, importAll(t, s, options, laid(t, chain...)), "15 added")
		wantFindings(t, s)
		for _, f := range chain {
			wantServed(t, s, f)
		}
	})
	t.Run("file by file", func(t *testing.T) {
		t.Parallel()
		s := newPlace(t).openTest(t)
		source := laid(t, chain...)
		var files []string
		for _, f := range chain {
			files = append(files, filepath.Join(source, f.hash().String()+".narinfo"))
		}
		wantOutcomes(t, importAll(t, s, options, files...), "15 added")
	})
	t.Run("incomplete", func(t *testing.T) {
		t.Parallel()
		s := newPlace(t).openTest(t)
		broken := slices.Delete(slices.Clone(chain), 9, 10) // a dependency of the first nine
		source := laid(t, broken...)
		results := importAll(t, s, options, source)
		wantOutcomes(t, results, "9 failed, 5 added")
		for n, f := range broken {
			r := results[f.hash().String()+".narinfo"]
			if n < 9 && (r.Err == nil || !strings.Contains(r.Err.Error(), chain[n+1].path().BaseName())) {
				t.Errorf("item %d: %v, want an error with the missing references", n, r.Err)
			}
			if n < 9 && !has(filepath.Join(source, f.name()), f.content) {
				t.Errorf("the nar of item %d was removed, although it was not imported", n)
			}
		}
		wantFindings(t, s)
		// After the missing one is imported, the others can be.
		lay(t, source, chain[9])
		wantOutcomes(t, importAll(t, s, options, source), "10 added, 5 known")
		wantFindings(t, s)
	})
	t.Run("not asked for", func(t *testing.T) {
		t.Parallel()
		s := newPlace(t).openTest(t)
		wantOutcomes(t, importAll(t, s, importer.Options{}, laid(t, chain[:5]...)), "5 added")
	})
	t.Run("corpus", func(t *testing.T) {
		t.Parallel()
		s := newPlace(t).openTest(t)
		wantOutcomes(t, importAll(t, s, importer.Options{Keep: true, WithReferences: true}, corpora[0]), "13 added")
	})
}

// TestReferencesWithinImport: references are checked before any nar is stored. References
// to items of the same import count, in any order and in cycles, unless these can't be
// imported either.
func TestReferencesWithinImport(t *testing.T) {
	t.Parallel()
	var circle, broken []fake
	for n := range 40 {
		circle = append(circle, fake{n: n, content: fmt.Sprint("nar ", n), refs: []int{(n + 1) % 40, (n + 7) % 40, n}})
		broken = append(broken, fake{n: 100 + n, content: fmt.Sprint("nar ", n), refs: []int{100 + (n+1)%40}})
	}
	broken[20].refs = append(broken[20].refs, 999)
	for _, keep := range []bool{true, false} {
		p := newPlace(t)
		counting := &faultStore{at: -1}
		s := p.openWith(t, func(bytes bytestore.Store) bytestore.Store {
			counting.Directory = unwrap(bytes)
			return counting
		})
		options := importer.Options{WithReferences: true, Keep: keep}
		importAll(t, s, importer.Options{}, laid(t, fake{n: 500, content: "owned"}))
		before := counting.steps
		results := importAll(t, s, options, laid(t, broken...))
		wantOutcomes(t, results, "40 failed")
		for file, r := range results {
			if r.Err == nil || !strings.Contains(r.Err.Error(), "no narinfo for its references") {
				t.Errorf("%s: %v", file, r.Err)
			}
		}
		if counting.steps != before {
			t.Errorf("the storage was used %d times for items that can't be imported", counting.steps-before)
		}
		if r := importer.New(s).Add(t.Context(), &importer.Addition{Narinfo: broken[20].parsed(), Directories: []string{laid(t, broken...)}, WithReferences: true}); r.Err == nil || counting.steps != before {
			t.Errorf("%v, the storage was used %d times", r.Err, counting.steps-before)
		}
		wantOutcomes(t, importAll(t, s, options, laid(t, slices.Concat(circle, broken)...)), "40 failed, 40 added")
		for _, f := range circle {
			wantServed(t, s, f)
		}
		wantFindings(t, s)
	}
	// This item looks valid when it is planned, but its nar is missing. Its dependents
	// are not imported.
	s := newPlace(t).openTest(t)
	source := laid(t, circle...)
	if err := os.Remove(filepath.Join(source, circle[3].name())); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, importAll(t, s, importer.Options{WithReferences: true}, source), "40 failed")
	wantFindings(t, s)
	// Its own dependencies, which don't need it, are imported.
	chain := many(30, func(f *fake) {
		if f.n < 29 {
			f.refs = []int{f.n + 1}
		}
	})
	source = laid(t, chain...)
	if err := os.Remove(filepath.Join(source, chain[10].name())); err != nil {
		t.Fatal(err)
	}
	wantOutcomes(t, importAll(t, s, importer.Options{WithReferences: true}, source), "11 failed, 19 added")
}
