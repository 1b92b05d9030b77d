package index

import (
	"reflect"
	"testing"
	"time"
)

// TestRecord reads tags, the pin, uses, and whether the item is hidden.
func TestRecord(t *testing.T) {
	x := openTest(t)
	for n := range 2 {
		put(t, x, testNarinfo(n, 1, nil, 10))
	}
	hash := testPath(0).Hash
	at := time.UnixMilli(1_700_000_000_123).UTC()
	update(t, x, func(tx *Tx) error {
		if err := tx.AddTags(hash, []Tag{{"b", "2"}, {"a", "1"}}); err != nil {
			return err
		}
		for _, pinned := range []int{0, 2} {
			if _, err := tx.Pin(testPath(pinned).Hash, at); err != nil {
				return err
			}
		}
		if _, err := tx.CountUses([]Uses{{Hash: hash, Count: 7, Last: at.Add(time.Hour)}}, 100); err != nil {
			return err
		}
		if err := tx.SetStored(hash, 0, nil, time.Time{}); err != nil {
			return err
		}
		return tx.SetLost(hash, at.Add(time.Minute))
	})
	for n, want := range []Record{
		{Tags: []Tag{{"a", "1"}, {"b", "2"}}, PinnedAt: at, Uses: 7, LastUsed: at.Add(time.Hour), LostAt: at.Add(time.Minute)},
		{},
		{PinnedAt: at},
	} {
		got, err := x.Record(t.Context(), testPath(n).Hash)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("item %d: %+v, %v, want %+v", n, got, err, want)
		}
	}
}
