package index

import (
	"slices"
	"testing"
	"time"
)

// TestLacking lists the items with files that are not stored, the newest first, except those of
// an upstream.
func TestLacking(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const count = 40
	var want []int
	update(t, x, func(tx *Tx) error {
		for n := range count {
			// Of three files, the bits of n are stored, the last file first.
			stored := []uint64{0b000, 0b100, 0b110, 0b111}[n%4]
			if err := putIn(tx, x, testNarinfo(n, 1, nil, 10, 10, 10), stored, nil); err != nil {
				return err
			}
			if n%4 != 3 && n != 20 && n != 21 && n != 24 && n != 25 {
				want = append([]int{n}, want...)
			}
		}
		for _, n := range []int{20, 21} {
			if _, err := tx.Withdraw(testPath(n).Hash, time.Now()); err != nil {
				return err
			}
		}
		origin, err := tx.Origin("https://upstream.example")
		if err != nil {
			return err
		}
		for _, n := range []int{24, 25} {
			if err := tx.SetOrigin(testPath(n).Hash, origin, time.Now()); err != nil {
				return err
			}
		}
		return nil
	})
	for _, limit := range []int{1, 7, 100} {
		var got []int
		for before, more := int64(-1), true; more; {
			page, again, err := x.Lacking(t.Context(), &before, limit)
			if err != nil || len(page) > limit {
				t.Fatal(len(page), err)
			}
			more = again
			for _, item := range page {
				for n := range count {
					if testPath(n).Hash == item.Hash {
						got = append(got, n)
					}
				}
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%d at a time: %v, want %v", limit, got, want)
		}
	}
	if got, err := x.CountLacking(t.Context()); err != nil || got != int64(len(want)) {
		t.Errorf("%d, %v; want %d", got, err, len(want))
	}
	if got, err := x.OriginCounts(t.Context()); err != nil || len(got) != 1 || got["https://upstream.example"] != 2 {
		t.Errorf("%v, %v; want 2 items of the upstream", got, err)
	}
}
