package index

import (
	"slices"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// said formats changes for comparison.
func said(changes []MirrorChange) (lines []string) {
	for _, c := range changes {
		line := "+" + string(c.Text)
		if c.Kind == Removed {
			line = "-" + c.StorePath
		}
		lines = append(lines, c.At.Format(time.DateTime)+" "+line)
	}
	return lines
}

func TestChangesAfter(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	first, second, third := testNarinfo(1, 1, nil, 1), testNarinfo(2, 1, nil, 1), testNarinfo(3, 1, nil, 1)
	page, err := x.ChangesAfter(t.Context(), 0, 10)
	if err != nil || len(page.Changes) != 0 || page.First != 1 || page.Last != 0 || page.Position != 0 || page.More {
		t.Errorf("of an empty log: %+v, %v", page, err)
	}
	put(t, x, first)
	put(t, x, second)
	update(t, x, func(tx *Tx) error { return tx.SetStored(first.StorePath.Hash, 0, nil, time.Time{}) }) // not for mirrors
	put(t, x, third)
	update(t, x, func(tx *Tx) error {
		_, err := tx.WithdrawAs(second.StorePath.Hash, testTime.Add(time.Hour), testTime.Add(time.Minute))
		return err
	})
	update(t, x, func(tx *Tx) error {
		return tx.PutChange(Change{At: testTime.Add(-time.Hour), Kind: Removed, Hash: narinfo.PathHash{9}, StorePath: "/gnu/store/other"})
	})
	at := testTime.Format(time.DateTime)
	want := []string{
		at + " +" + string(first.Text),
		at + " +" + string(third.Text), // the second is withdrawn
		testTime.Add(time.Minute).Format(time.DateTime) + " -" + second.StorePath.String(),
		testTime.Add(-time.Hour).Format(time.DateTime) + " -/gnu/store/other",
	}
	for _, limit := range []int{1, 2, 3, 6, 100} {
		var all []MirrorChange
		after := int64(0)
		for more := true; more; {
			page, err := x.ChangesAfter(t.Context(), after, limit)
			if err != nil || page.First != 1 || page.Last != 6 {
				t.Fatalf("%+v, %v", page, err)
			}
			all = append(all, page.Changes...)
			after, more = page.Position, page.More
		}
		if after != 6 || !slices.Equal(said(all), want) {
			t.Errorf("%d at a time: %q at %d, want %q", limit, said(all), after, want)
		}
		var byTime []MirrorChange
		place := TimeCursor{At: testTime.Add(-2 * time.Hour)}
		for more := true; more; {
			var told []MirrorChange
			if told, more, err = x.ChangesFrom(t.Context(), &place, limit); err != nil {
				t.Fatal(err)
			}
			byTime = append(byTime, told...)
		}
		if wantByTime := []string{want[3], want[0], want[1], want[2]}; !slices.Equal(said(byTime), wantByTime) {
			t.Errorf("by time, %d at a time: %q, want %q", limit, said(byTime), wantByTime)
		}
	}
	place := TimeCursor{At: testTime}
	told, more, err := x.ChangesFrom(t.Context(), &place, 100)
	if err != nil || more || !slices.Equal(said(told), want[:3]) {
		t.Errorf("from a time, inclusive: %q, %v, %v", said(told), more, err)
	}
	if page, err = x.ChangesAfter(t.Context(), 100, 100); err != nil || page.Last != 6 {
		t.Errorf("after a change that never existed: %+v, %v", page, err)
	}
	update(t, x, func(tx *Tx) error { return tx.conn.exec("DELETE FROM recent_changes WHERE id <= 4") })
	if page, err = x.ChangesAfter(t.Context(), 2, 100); err != nil || page.First != 5 || len(page.Changes) != 2 {
		t.Errorf("after trimming: %+v, %v; want it to show that 3 and 4 were trimmed", page, err)
	}
	update(t, x, func(tx *Tx) error { return tx.conn.exec("DELETE FROM recent_changes") })
	if page, err = x.ChangesAfter(t.Context(), 6, 100); err != nil || page.First != 7 || page.Last != 6 || page.Position != 6 {
		t.Errorf("after trimming all: %+v, %v", page, err)
	}
}

// TestMirrored: the index distinguishes mirrored items from others, and hides unlogged
// items from mirrors.
func TestMirrored(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	n := testNarinfo(1, 1, nil, 1)
	mirrored := func() bool {
		item, err := x.Item(t.Context(), n.StorePath.Hash)
		if err != nil {
			t.Fatal(err)
		}
		return item.Mirrored
	}
	write := func(old *Item, mirrored, unlogged bool) {
		entry := x.Prepare(n)
		entry.AddedAt, entry.Mirrored, entry.Unlogged = testTime, mirrored, unlogged
		update(t, x, func(tx *Tx) error { return tx.Put(entry, old) })
	}
	write(nil, false, true)
	if mirrored() {
		t.Error("a new item counts as mirrored")
	}
	old, err := x.Item(t.Context(), n.StorePath.Hash)
	if err != nil {
		t.Fatal(err)
	}
	write(old, true, true)
	if !mirrored() {
		t.Error("it is not mirrored")
	}
	if old, err = x.Item(t.Context(), n.StorePath.Hash); err != nil {
		t.Fatal(err)
	}
	write(old, false, true)
	if !mirrored() {
		t.Error("an import has changed whether an item is mirrored")
	}
	update(t, x, func(tx *Tx) error { return tx.SetMirrored(n.StorePath.Hash, false) })
	if mirrored() {
		t.Error("it is still mirrored")
	}
	if last, err := x.LastChange(t.Context()); err != nil || last != 0 {
		t.Errorf("the log has %d rows, %v; want none", last, err)
	}
}
