package index

import (
	"slices"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// An item with several files counts as verified when the first of them was; an added file that
// never was makes the item unverified.
func TestVerifiedAt(t *testing.T) {
	at := func(minutes int) time.Time {
		return time.Unix(1_700_000_000, 0).UTC().Add(time.Duration(minutes) * time.Minute)
	}
	for _, test := range []struct {
		name     string
		change   func(tx *Tx, hash narinfo.PathHash) error
		verified time.Time
	}{
		{"new", func(*Tx, narinfo.PathHash) error { return nil }, time.Time{}},
		{"stored and verified", func(tx *Tx, hash narinfo.PathHash) error { return tx.SetStored(hash, 1, nil, at(5)) }, at(5)},
		{"stored, then verified", func(tx *Tx, hash narinfo.PathHash) error {
			if err := tx.SetStored(hash, 1, nil, time.Time{}); err != nil {
				return err
			}
			return tx.SetVerified(hash, at(6))
		}, at(6)},
		{"second file later", func(tx *Tx, hash narinfo.PathHash) error {
			if err := tx.SetStored(hash, 1, nil, at(5)); err != nil {
				return err
			}
			return tx.SetStored(hash, 3, nil, at(7))
		}, at(5)},
		{"second file never", func(tx *Tx, hash narinfo.PathHash) error {
			if err := tx.SetStored(hash, 1, nil, at(5)); err != nil {
				return err
			}
			return tx.SetStored(hash, 3, nil, time.Time{})
		}, time.Time{}},
		{"one file removed", func(tx *Tx, hash narinfo.PathHash) error {
			if err := tx.SetStored(hash, 3, nil, at(5)); err != nil {
				return err
			}
			return tx.SetStored(hash, 1, nil, time.Time{})
		}, at(5)},
		{"all files removed", func(tx *Tx, hash narinfo.PathHash) error {
			if err := tx.SetStored(hash, 3, nil, at(5)); err != nil {
				return err
			}
			return tx.SetStored(hash, 0, nil, time.Time{})
		}, time.Time{}},
		{"nothing stored", func(tx *Tx, hash narinfo.PathHash) error { return tx.SetVerified(hash, at(5)) }, time.Time{}},
	} {
		t.Run(test.name, func(t *testing.T) {
			x := openTest(t)
			n := testNarinfo(1, 1, nil, 10, 20)
			put(t, x, n)
			hash := n.StorePath.Hash
			update(t, x, func(tx *Tx) error { return tx.SetStored(hash, 0, nil, time.Time{}) })
			update(t, x, func(tx *Tx) error { return test.change(tx, hash) })
			item, err := x.Item(t.Context(), hash)
			if err != nil {
				t.Fatal(err)
			}
			if !item.VerifiedAt.Equal(test.verified) {
				t.Errorf("verified at %v, want %v", item.VerifiedAt, test.verified)
			}
		})
	}
}

// VerifiedBefore pages through the items, the longest unverified first.
func TestVerifiedBefore(t *testing.T) {
	x := openTest(t)
	at := func(minutes int) time.Time {
		return time.Unix(1_700_000_000, 0).UTC().Add(time.Duration(minutes) * time.Minute)
	}
	for number := 1; number <= 8; number++ {
		put(t, x, testNarinfo(number, 1, nil, 10))
		update(t, x, func(tx *Tx) error { return tx.SetStored(testPath(number).Hash, 0, nil, time.Time{}) })
	}
	for number, minutes := range map[int]int{1: 30, 2: 10, 3: 20, 4: 10, 5: 90} {
		update(t, x, func(tx *Tx) error { return tx.SetStored(testPath(number).Hash, 1, nil, at(minutes)) })
	}
	update(t, x, func(tx *Tx) error { return tx.SetStored(testPath(6).Hash, 1, nil, time.Time{}) })
	update(t, x, func(tx *Tx) error { return tx.SetStored(testPath(7).Hash, 0, nil, at(1)) })
	update(t, x, func(tx *Tx) error {
		if err := tx.SetStored(testPath(8).Hash, 1, nil, at(2)); err != nil {
			return err
		}
		_, err := tx.Withdraw(testPath(8).Hash, at(3))
		return err
	})
	for _, limit := range []int{1, 2, 100} {
		var cursor VerificationCursor
		var times []time.Time
		found := make(map[narinfo.PathHash]bool)
		for more := true; more; {
			var page []*Item
			var err error
			if page, more, err = x.VerifiedBefore(t.Context(), at(60), &cursor, limit); err != nil {
				t.Fatal(err)
			}
			for _, item := range page {
				times = append(times, item.VerifiedAt)
				found[item.Hash] = true
			}
		}
		want := []time.Time{{}, at(10), at(10), at(20), at(30)}
		if !slices.EqualFunc(times, want, time.Time.Equal) || len(found) != len(want) {
			t.Errorf("pages of %d: %v, want %v", limit, times, want)
		}
	}
	sums, err := x.Verification(t.Context())
	if err != nil || sums.Never != 1 || !sums.Oldest.Equal(at(10)) || !sums.Newest.Equal(at(90)) {
		t.Errorf("Verification is %+v, %v", sums, err)
	}
	update(t, x, func(tx *Tx) error {
		_, err := tx.Withdraw(testPath(6).Hash, at(3))
		return err
	})
	if sums, err := x.Verification(t.Context()); err != nil || sums.Never != 0 {
		t.Errorf("Verification is %+v, %v, after the item that was never verified was withdrawn", sums, err)
	}
}
