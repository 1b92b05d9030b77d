package storage_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"nar-herder/storage/importer"
)

// TestProcesses: several processes import the same directories while another removes items.
func TestProcesses(t *testing.T) {
	t.Parallel()
	items := many(25, nil)
	signed := many(25, func(f *fake) { f.note = "signed anew" })
	zstd := many(25, func(f *fake) { f.kind, f.content = "zstd", fmt.Sprint("zstd ", f.n) })
	sources := []string{laid(t, items...), laid(t, signed...), laid(t, zstd...)}
	p := newPlace(t)
	remover := startHelper(t, p, "remove")
	var importers []*helper
	for i := range 4 {
		importers = append(importers, startHelper(t, p, "keep", sources[i%3], sources[(i+1)%3]))
	}
	for _, h := range importers {
		h.end(t)
	}
	remover.end(t)
	s := p.openTest(t)
	wantFindings(t, s)
	if err := importStrictly(s, sources[:1], importer.Options{Keep: true}); err != nil {
		t.Error(err)
	}
	for _, f := range items {
		wantServed(t, s, f)
	}
	wantFindings(t, s)
}

// TestProcessesMoveTheSame: several processes move the nars of one directory.
func TestProcessesMoveTheSame(t *testing.T) {
	t.Parallel()
	items := many(100, nil)
	p := newPlace(t)
	source := laid(t, items...)
	var movers []*helper
	for range 4 {
		movers = append(movers, startHelper(t, p, "move", source))
	}
	for _, h := range movers {
		h.end(t)
	}
	s := p.openTest(t)
	for _, f := range items {
		wantServed(t, s, f)
	}
	wantFindings(t, s)
}

// TestHandles: the same within one process, with several goroutines.
func TestHandles(t *testing.T) {
	t.Parallel()
	first := many(12, nil)
	rebuilt := many(12, func(f *fake) { f.content, f.other = fmt.Sprint("rebuilt ", f.n), true })
	p := newPlace(t)
	sources := []string{laid(t, first...), laid(t, rebuilt...)}
	var group sync.WaitGroup
	for i := range 4 {
		s := p.openTest(t)
		group.Go(func() {
			for range 3 {
				if err := importStrictly(s, sources[i%2:i%2+1], importer.Options{Keep: true, Replace: i < 2}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	remover := p.openTest(t)
	group.Go(func() {
		for range 5 {
			if err := removeAll(remover, 2); err != nil {
				t.Error(err)
			}
		}
	})
	group.Wait()
	s := p.openTest(t)
	wantFindings(t, s)
	for item, err := range s.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		// Text and bytes must match.
		content, err := stored(s, item.Hash, 0)
		if err != nil || strings.HasPrefix(content, "rebuilt") != (item.Narinfo.NarHash == rebuilt[0].parsed().NarHash) {
			t.Errorf("%q is served for %q, %v", content, item.Text, err)
		}
	}
}

// TestTwoForOneItem: an import with two narinfos for each item.
func TestTwoForOneItem(t *testing.T) {
	t.Parallel()
	first := many(12, nil)
	for name, second := range map[string][]fake{
		"the same":      many(12, nil),
		"other text":    many(12, func(f *fake) { f.note = "signed anew" }),
		"other size":    many(12, func(f *fake) { f.note, f.content = "smaller", "x" }),
		"other nar":     many(12, func(f *fake) { f.other, f.content = true, "rebuilt" }),
		"compression":   many(12, func(f *fake) { f.kind, f.content = "zstd", "zstd" }),
		"one file more": many(12, func(f *fake) { f.extra = []fake{{kind: "zstd", content: "zstd"}} }),
	} {
		for _, options := range []importer.Options{{}, {Replace: true}, {Keep: true}} {
			t.Run(fmt.Sprintf("%s, replace %v, keep %v", name, options.Replace, options.Keep), func(t *testing.T) {
				t.Parallel()
				p := newPlace(t)
				s := p.openTest(t)
				source := t.TempDir()
				lay(t, source+"/a", first...)
				lay(t, source+"/b", second...)
				if err := importStrictly(s, []string{source}, options); err != nil {
					t.Error(err)
				}
				wantFindings(t, s)
				for n := range first {
					text, err := s.Text(t.Context(), first[n].hash())
					if err != nil {
						t.Error(err)
						continue
					}
					winner := first[n]
					if string(text) == second[n].text() {
						winner = second[n]
					}
					wantServed(t, s, winner)
					for d, loser := range map[string]fake{"a": first[n], "b": second[n]} {
						if options.Keep && !has(filepath.Join(source, d, loser.name()), loser.content) {
							t.Errorf("%s/%s was removed", d, loser.name())
						}
					}
				}
			})
		}
	}
}
