package storage_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/check"
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
		for finding, err := range check.New(s).CheckClosures(t.Context(), func() { looked++ }) {
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

// allowed is a guard that allows everything.
func allowed(*index.Tx, map[narinfo.PathHash]index.ChangeKind) error { return nil }
