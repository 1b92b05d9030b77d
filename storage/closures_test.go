package storage_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/check"
	"nar-herder/storage/check/closures"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

func TestCheckClosures(t *testing.T) {
	t.Parallel()
	s := newPlace(t).openTest(t)
	items := []fake{
		{n: 1, content: "1"}, {n: 2, content: "2", refs: []int{1, 2}}, {n: 3, content: "3", refs: []int{8, 1, 9}}, {n: 4, content: "4", refs: []int{4, 3, 9}},
		{n: 5, content: "5"}, {n: 6, content: "6", refs: []int{5}}, {n: 7, content: "7", refs: []int{9}},
	}
	importAll(t, s, importer.Options{}, laid(t, items...))
	check := func(want map[int][]int) {
		t.Helper()
		looked := 0
		found := map[int][]int{}
		for finding, err := range closures.All(t.Context(), s, func() { looked++ }) {
			if err != nil || finding.Kind != check.Incomplete || finding.Name != "" {
				t.Fatalf("%+v, %v", finding, err)
			}
			n := slices.IndexFunc(items, func(f fake) bool { return f.hash() == finding.Item.Hash })
			for _, reference := range finding.References {
				var missing int
				if _, err := fmt.Sscanf(reference.BaseName()[33:], "item-%d", &missing); err != nil {
					t.Fatal(err)
				}
				found[items[n].n] = append(found[items[n].n], missing)
				if !strings.Contains(finding.Note, reference.String()) {
					t.Errorf("the note %q lacks %s", finding.Note, reference)
				}
			}
		}
		if fmt.Sprint(found) != fmt.Sprint(want) || looked != len(items) {
			t.Errorf("found %v in %d items, want %v", found, looked, want)
		}
	}
	check(map[int][]int{3: {8, 9}, 4: {9}, 7: {9}})
	// A withdrawn item counts as missing for others, and is not checked itself.
	var going []*storage.Item
	for _, n := range []int{5, 7} {
		item, err := s.Item(t.Context(), fake{n: n}.hash())
		if err != nil {
			t.Fatal(err)
		}
		going = append(going, item)
	}
	if withdrawn, err := deletion.Withdraw(t.Context(), s, going, int64(len(items)), allowed); err != nil || len(withdrawn) != 2 {
		t.Fatal(withdrawn, err)
	}
	check(map[int][]int{3: {8, 9}, 4: {9}, 6: {5}})
}

// TestCheckClosureOf: what a storage lacks of a closure, even if others have it.
func TestCheckClosureOf(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	s := p.openTest(t)
	importAll(t, s, importer.Options{}, laid(t,
		fake{n: 1, content: "1", refs: []int{1, 2, 3}}, fake{n: 2, content: "2"}, fake{n: 4, content: "4"}, fake{n: 9, content: "9", refs: []int{8}}))
	// 3 is of an upstream, without its nar.
	upstream := fake{n: 3, content: "3", refs: []int{2, 5}}
	err := s.Index().Update(t.Context(), func(tx *index.Tx) error {
		origin, err := tx.Origin("https://upstream.example")
		if err != nil {
			return err
		}
		entry := s.Index().Prepare(upstream.parsed())
		entry.Origin = origin
		return tx.Put(entry, nil)
	})
	if err != nil {
		t.Fatal(err)
	}
	path := func(n int) narinfo.StorePath { return fake{n: n}.path() }
	want := func(what string, s *storage.Storage, roots []narinfo.StorePath, wanted ...string) {
		t.Helper()
		var found []string
		looked := 0
		for finding, err := range closures.Of(t.Context(), s, roots, func() { looked++ }) {
			if err != nil {
				t.Fatal(err)
			}
			text := finding.Kind.String()
			if finding.Item != nil {
				text += " " + finding.Item.Narinfo.StorePath.Name
			}
			for _, reference := range finding.References {
				text += " -> " + reference.Name
			}
			found = append(found, text)
		}
		slices.Sort(found)
		slices.Sort(wanted)
		if !slices.Equal(found, wanted) {
			t.Errorf("%s: found %q, want %q, of %d items", what, found, wanted, looked)
		}
	}
	reader := func() *storage.Storage {
		t.Helper()
		x, err := index.Open(t.Context(), p.database, index.Options{Access: index.Read})
		if err != nil {
			t.Fatal(err)
		}
		bytes, err := directory.Open(p.store)
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
	want("complete", s, []narinfo.StorePath{path(2), path(4)})
	want("of an upstream", s, []narinfo.StorePath{path(1)}, "unstored item-3", "incomplete item-3 -> item-5")
	want("unknown roots", s, []narinfo.StorePath{path(7), {Hash: path(6).Hash}, path(2)}, "incomplete -> item-7", "incomplete")
	// Files that the row doesn't claim, or that are gone.
	layNars(t, p.store, upstream)
	if err := os.Remove(filepath.Join(p.store, fake{n: 2}.name())); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(p.store, fake{n: 1}.name()), "longer")
	want("files", s, []narinfo.StorePath{path(1)}, "unrecorded item-3", "incomplete item-3 -> item-5", "missing item-2", "wrong size item-1")
	item, err := s.Item(t.Context(), path(4).Hash)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := deletion.Withdraw(t.Context(), s, []*storage.Item{item}, 4, allowed); err != nil {
		t.Fatal(err)
	}
	want("withdrawn", s, []narinfo.StorePath{path(4)}, "incomplete item-4")
	// Without a lock of the index.
	want("for reading", reader(), []narinfo.StorePath{path(1)}, "unrecorded item-3", "incomplete item-3 -> item-5", "missing item-2", "wrong size item-1")
	// The check of all items leaves out what upstreams have.
	for finding, err := range closures.All(t.Context(), s, nil) {
		if err != nil || finding.Item.Hash != path(9).Hash {
			t.Errorf("%+v, %v", finding, err)
		}
	}
	if err := os.Remove(filepath.Join(p.store, upstream.name())); err != nil {
		t.Fatal(err)
	}
	for finding, err := range check.New(s).CheckUnstored(t.Context(), check.UnstoredOptions{Partial: true}, nil) {
		t.Errorf("%+v, %v", finding, err)
	}
}

// allowed is a guard that allows everything.
func allowed(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil }
