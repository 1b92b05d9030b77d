package index

import (
	"errors"
	"slices"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestNamesAfter: the names of all items in insertion order, except damaged ones.
func TestNamesAfter(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	for n := range 7 {
		put(t, x, testNarinfo(n, 1, nil, 1))
	}
	// An unusual way to write the field.
	odd, err := narinfo.Parse([]byte("StorePath:   " + testPath(7).String() + "\nNarHash: sha256:0000000000000000000000000000000000000000000000000000\nNarSize: 1\nReferences: \nURL: x\nCompression: none\nFileSize: 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, x, odd)
	update(t, x, func(tx *Tx) error {
		_, err := tx.Withdraw(testPath(2).Hash, testTime)
		return errors.Join(err, tx.Remove(testPath(4).Hash, testTime), tx.conn.exec("UPDATE narinfos SET text = x'00' WHERE id = ?", int64(6)))
	})
	var names []string
	var last int64
	for more := true; more; {
		var step []Named
		step, last, more, err = x.NamesAfter(t.Context(), last, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, named := range step {
			names = append(names, named.Name)
			items, err := x.ItemsByPosition(t.Context(), []int64{named.Position})
			if err != nil || (items[0] == nil) != (named.Name == "item-2") || items[0] != nil && items[0].Hash != named.Hash {
				t.Errorf("%s at %d is %v, %v", named.Name, named.Position, items, err)
			}
		}
	}
	if want := []string{"item-0", "item-1", "item-2", "item-3", "item-6", "item-7"}; !slices.Equal(names, want) {
		t.Errorf("names are %v, want %v", names, want)
	}
	positions, err := x.PositionsAfter(t.Context(), 0, 100)
	if want := []int64{1, 2, 3, 4, 6, 7, 8}; err != nil || !slices.Equal(positions, want) {
		t.Errorf("positions are %v, %v; want %v", positions, err, want)
	}
	if positions, err = x.PositionsAfter(t.Context(), 4, 1); err != nil || !slices.Equal(positions, []int64{6}) {
		t.Errorf("the position after 4 is %v, %v", positions, err)
	}
	update(t, x, func(tx *Tx) error { return tx.Remove(testPath(7).Hash, testTime) })
	if last, err := x.LastPosition(t.Context()); err != nil || last != 8 {
		t.Errorf("the last position is %d, %v, want that of the removed item", last, err)
	}
	// The removed one, a damaged one, and some that never existed.
	items, err := x.ItemsByPosition(t.Context(), []int64{8, 6, 0, -1, 1 << 40})
	if err != nil || slices.ContainsFunc(items, func(i *Item) bool { return i != nil }) {
		t.Errorf("items that clients can't get are %v, %v", items, err)
	}
}

// TestManyByPosition: items are in the order of the positions, also of repeated ones.
func TestManyByPosition(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const total = 2*keysAtOnce + 10
	for n := range total {
		put(t, x, testNarinfo(n, 1, nil, 1))
	}
	var positions, want, got []int64
	for n := range int64(2 * total) {
		positions = append(positions, 1+n*7%(total+5))
	}
	items, err := x.ItemsByPosition(t.Context(), positions)
	if err != nil || len(items) != len(positions) {
		t.Fatalf("%d items for %d positions, %v", len(items), len(positions), err)
	}
	for i, item := range items {
		if positions[i] <= total {
			want = append(want, positions[i])
		}
		if item != nil {
			got = append(got, item.Position())
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("positions of the items are %v, want %v", got, want)
	}
	if items, err := x.ItemsByPosition(t.Context(), nil); err != nil || len(items) != 0 {
		t.Errorf("no positions have %v, %v", items, err)
	}
}

// TestReferrersBefore: pages of the referrers of an item are all of them, the newest first.
func TestReferrersBefore(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const total = 700
	var want []int
	add := func(n int) {
		references := []int{n}
		if n%3 != 0 {
			references = append(references, 0)
			want = append(want, n)
		}
		update(t, x, func(tx *Tx) error { return putIn(tx, x, testNarinfo(n, 1, references, 1), 1, nil) })
	}
	for n := range total {
		add(n)
	}
	want = slices.DeleteFunc(want, func(n int) bool { return n%7 == 1 || n%7 == 2 || n == 0 })
	update(t, x, func(tx *Tx) error {
		for n := 1; n < total; n++ {
			var err error
			switch n % 7 {
			case 1:
				err = tx.Remove(testPath(n).Hash, testTime)
			case 2:
				_, err = tx.Withdraw(testPath(n).Hash, testTime)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	// It comes back, and is the newest.
	add(1)
	slices.Reverse(want)
	for _, limit := range []int{1, 7, 100, len(want), 10 * total} {
		var got []narinfo.PathHash
		before := int64(0)
		for more := true; more; {
			var items []Named
			var err error
			items, more, err = x.ReferrersBefore(t.Context(), testPath(0).Hash, before, limit)
			if err != nil {
				t.Fatal(err)
			}
			if len(items) > limit || more && len(items) < limit {
				t.Fatalf("a page of %d has %d items, more %v", limit, len(items), more)
			}
			for _, item := range items {
				got = append(got, item.Hash)
				before = item.Position
			}
		}
		if got := numbers(t, got, total); !slices.Equal(got, want) {
			t.Errorf("in pages of %d, referrers are %v, want %v", limit, got, want)
		}
	}
	for _, n := range []int{2, total} {
		if items, more, err := x.ReferrersBefore(t.Context(), testPath(n).Hash, 0, 5); len(items) != 0 || more || err != nil {
			t.Errorf("referrers of an item without, or unknown, are %v, %v, %v", items, more, err)
		}
	}
}

// TestClosureSize compares the sums with those of the items.
func TestClosureSize(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(0, 1, []int{0}, 10))
	put(t, x, testNarinfo(1, 1, []int{1, 0}, 10, 5))
	put(t, x, testNarinfo(2, 1, []int{0, 1, 5, 6}, 10))
	put(t, x, testNarinfo(3, 1, []int{2, 1, 6, 3}, 10))
	put(t, x, testNarinfo(4, 1, []int{3}, 10))
	put(t, x, testNarinfo(6, 1, nil, 10))
	update(t, x, func(tx *Tx) error {
		_, err := tx.Withdraw(testPath(6).Hash, testTime)
		return err
	})
	missing := []narinfo.StorePath{testPath(6), testPath(5)}
	for _, test := range []struct {
		root, most int
		want       ClosureSize
	}{
		{0, 10, ClosureSize{Items: 1, NarSize: 100, Complete: true}},
		{1, 2, ClosureSize{Items: 2, NarSize: 201, Complete: true}},
		{3, 6, ClosureSize{Items: 4, NarSize: 406, Complete: true, MissingCount: 2, Missing: missing}},
		{3, 5, ClosureSize{Items: 4, NarSize: 406, MissingCount: 1, Missing: missing[:1]}},
		{3, 1, ClosureSize{Items: 1, NarSize: 103}},
		{3, 0, ClosureSize{}},
	} {
		got, err := x.ClosureSize(t.Context(), testPath(test.root).Hash, test.most)
		if err != nil || got.Items != test.want.Items || got.NarSize != test.want.NarSize ||
			got.Complete != test.want.Complete || got.MissingCount != test.want.MissingCount || !slices.Equal(got.Missing, test.want.Missing) {
			t.Errorf("the closure of %d, at most %d items, is %+v, %v; want %+v", test.root, test.most, got, err, test.want)
		}
	}
	for _, n := range []int{5, 6} { // unknown, withdrawn
		if _, err := x.ClosureSize(t.Context(), testPath(n).Hash, 10); err != ErrNotFound {
			t.Errorf("the closure of %d: %v", n, err)
		}
	}
	update(t, x, func(tx *Tx) error { return tx.conn.exec("UPDATE narinfos SET text = x'00' WHERE id = 1") })
	if _, err := x.ClosureSize(t.Context(), testPath(0).Hash, 10); !errors.Is(err, ErrDamaged) {
		t.Errorf("a damaged item: %v", err)
	}
	size, err := x.ClosureSize(t.Context(), testPath(3).Hash, 10)
	if err != nil || size.Damaged != 1 || size.Items != 3 || size.MissingCount != 2 || !size.Complete {
		t.Errorf("with a damaged item: %+v, %v", size, err)
	}
	update(t, x, func(tx *Tx) error {
		return errors.Join(tx.SetStored(testPath(2).Hash, 0, nil, time.Time{}), tx.SetLost(testPath(2).Hash, testTime))
	})
	size, err = x.ClosureSize(t.Context(), testPath(3).Hash, 10)
	if err != nil || size.Items != 2 || size.MissingCount != 2 || !slices.Equal(size.Missing, []narinfo.StorePath{testPath(2), testPath(6)}) {
		t.Errorf("with a lost item: %+v, %v", size, err)
	}
	if hidden, err := x.HiddenReferences(t.Context(), testNarinfo(3, 1, []int{2, 1, 6, 3}, 10)); err != nil || !slices.Equal(hidden, []narinfo.StorePath{testPath(2), testPath(6)}) {
		t.Errorf("hidden references are %v, %v", hidden, err)
	}
}
