package index

import (
	"errors"
	"slices"
	"testing"
	"time"
)

// TestSampleIsSpread: items that were added together are seldom sampled together, and gaps
// of removed rows do not make other rows more likely.
func TestSampleIsSpread(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const count, removed = 60, 40
	update(t, x, func(tx *Tx) error {
		for n := range count {
			if err := putIn(tx, x, testNarinfo(n, 1, nil, 10), 1, nil); err != nil {
				return err
			}
		}
		return tx.conn.exec("DELETE FROM items WHERE id <= ?", int64(removed))
	})
	together := 0
	for range 100 {
		items, err := x.Sample(t.Context(), 4, true)
		if err != nil || len(items) != 4 {
			t.Fatal(len(items), err)
		}
		var ids []int64
		for _, item := range items {
			ids = append(ids, item.id)
		}
		slices.Sort(ids)
		if ids[0] == ids[1] {
			t.Fatalf("one item twice: %v", ids)
		}
		if ids[3]-ids[0] == 3 {
			together++
		}
	}
	if together > 20 {
		t.Errorf("%d of 100 samples are of neighbours", together)
	}
}

// TestSample: each item is sampled eventually, except withdrawn, unstored and damaged ones.
func TestSample(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	if items, err := x.Sample(t.Context(), 3, false); err != nil || len(items) != 0 {
		t.Errorf("of nothing: %d, %v", len(items), err)
	}
	const count, withdrawn = 10, 4
	update(t, x, func(tx *Tx) error {
		for n := range count {
			if err := putIn(tx, x, testNarinfo(n, 1, nil, 10), uint64(n%2), nil); err != nil {
				return err
			}
		}
		_, err := tx.Withdraw(testPath(withdrawn).Hash, time.Now())
		return err
	})
	for _, stored := range []bool{false, true} {
		want, seen := make(map[string]bool), make(map[string]bool)
		for n := range count {
			if n != withdrawn && (!stored || n%2 == 1) {
				want[testPath(n).Hash.String()] = true
			}
		}
		for range 1000 {
			items, err := x.Sample(t.Context(), 3, stored)
			if err != nil || len(items) != 3 {
				t.Fatal(len(items), err)
			}
			for _, item := range items {
				if seen[item.Hash.String()] = true; !want[item.Hash.String()] {
					t.Fatalf("stored %v: %s is in a sample", stored, item.Hash)
				}
			}
		}
		if len(seen) != len(want) {
			t.Errorf("stored %v: %d items were in samples, want %d", stored, len(seen), len(want))
		}
	}
	damage := func(condition string) {
		t.Helper()
		update(t, x, func(tx *Tx) error {
			return tx.conn.exec("UPDATE narinfos SET text = x'00' WHERE " + condition)
		})
	}
	damage("id > 3")
	for range 100 {
		if items, err := x.Sample(t.Context(), 3, false); err != nil || len(items) == 0 {
			t.Fatal(len(items), err)
		}
	}
	damage("true")
	if _, err := x.Sample(t.Context(), 3, false); !errors.Is(err, ErrDamaged) {
		t.Errorf("all damaged: %v", err)
	}
}
