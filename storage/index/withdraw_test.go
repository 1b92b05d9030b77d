package index

import (
	"errors"
	"testing"
	"time"

	"nar-herder/narinfo"
)

func TestWithdraw(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, []int{2}, 10))
	put(t, x, testNarinfo(2, 1, nil, 20))
	w := watch(t, x)
	at := time.UnixMilli(5_000_000).UTC()
	hash := testPath(1).Hash
	withdraw := func(at time.Time) (done bool) {
		t.Helper()
		err := x.Update(t.Context(), func(tx *Tx) (err error) {
			done, err = tx.Withdraw(hash, at)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	if !withdraw(at) || withdraw(at.Add(time.Hour)) {
		t.Error("an item was withdrawn twice")
	}
	if _, err := x.Text(t.Context(), hash); !errors.Is(err, ErrNotFound) {
		t.Errorf("its text is still served: %v", err)
	}
	if _, _, _, err := x.TextAndCached(t.Context(), hash); !errors.Is(err, ErrNotFound) {
		t.Errorf("its text is still served: %v", err)
	}
	item, err := x.Item(t.Context(), hash)
	if err != nil || !item.WithdrawnAt.Equal(at) {
		t.Errorf("its row: %+v, %v", item, err)
	}
	if changes := poll(t, w); len(changes) != 1 || changes[0].Kind != Removed || changes[0].StorePath != testPath(1).String() {
		t.Errorf("changes: %+v", changes)
	}
	if missing, err := x.MissingReferences(t.Context(), testNarinfo(3, 1, []int{1, 2}, 10)); err != nil || len(missing) != 1 {
		t.Errorf("a withdrawn item is not missing: %v, %v", missing, err)
	}
	due := at.Add(narinfo.UnadvertisedTTL + answersKept)
	if !item.DeleteAfter.Equal(due) {
		t.Errorf("it may be deleted from %v on, want %v", item.DeleteAfter, due)
	}
	for later, want := range map[time.Duration]int{-1: 0, 0: 1, time.Hour: 1} {
		items, err := x.DeletableItems(t.Context(), due.Add(later), 10)
		if err != nil || len(items) != want {
			t.Errorf("after %v: %d items, %v", later, len(items), err)
		}
	}
	if usage, err := x.WithdrawnStored(t.Context()); err != nil || usage != (WithdrawnUsage{4096, due, due}) {
		t.Errorf("%+v, %v", usage, err)
	}
	// A withdrawn item that is put again stays.
	put(t, x, testNarinfo(1, 1, []int{2}, 10))
	if _, err := x.Text(t.Context(), hash); err != nil {
		t.Error(err)
	}
	// The removal of a withdrawn item is logged once.
	withdraw(at)
	poll(t, w)
	if err := x.Update(t.Context(), func(tx *Tx) error { return tx.Remove(hash, at) }); err != nil {
		t.Fatal(err)
	}
	if changes := poll(t, w); len(changes) != 1 || changes[0].Kind != StorageChanged {
		t.Errorf("changes: %+v", changes)
	}
	wantTotals(t, x, Totals{1, 1, 20})
	wantSound(t, x)
}

// TestWithdrawnBehindDamaged: damaged items don't count towards the limit.
func TestWithdrawnBehindDamaged(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	begin := time.Now().AddDate(-1, 0, 0)
	update(t, x, func(tx *Tx) error {
		for n := 1; n <= 3; n++ {
			if err := putIn(tx, x, testNarinfo(n, 1, nil, 10), 1, nil); err != nil {
				return err
			}
			if _, err := tx.Withdraw(testPath(n).Hash, begin.Add(time.Duration(n)*time.Second)); err != nil {
				return err
			}
		}
		return tx.conn.exec("UPDATE narinfos SET text = x'00' WHERE id < 3")
	})
	items, err := x.DeletableItems(t.Context(), time.Now(), 1)
	if err != nil || len(items) != 1 || items[0].Hash != testPath(3).Hash {
		t.Errorf("%v, %v, want the one that is not damaged", items, err)
	}
}

func TestPins(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	// 1 → 2 → 3 → 1, 3 → 9, which is unknown; 4 → 2 is outside.
	put(t, x, testNarinfo(1, 1, []int{2}, 10))
	put(t, x, testNarinfo(2, 1, []int{2, 3}, 10))
	put(t, x, testNarinfo(3, 1, []int{1, 9}, 10))
	put(t, x, testNarinfo(4, 1, []int{2}, 10))
	err := x.Update(t.Context(), func(tx *Tx) error {
		first, err1 := tx.Pin(testPath(1).Hash, time.UnixMilli(1000))
		second, err2 := tx.Pin(testPath(1).Hash, time.UnixMilli(2000))
		if !first || second {
			t.Error("an item was pinned twice")
		}
		return errors.Join(err1, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
	pins, err := x.Pins(t.Context())
	if err != nil || len(pins) != 1 || pins[0].Hash != testPath(1).Hash || pins[0].At.UnixMilli() != 1000 {
		t.Errorf("%+v, %v", pins, err)
	}
	closure, err := x.Closure(t.Context(), []narinfo.PathHash{testPath(1).Hash})
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]bool{1: true, 2: true, 3: true, 9: true, 4: false, 5: false} {
		if closure.Has(testPath(n).Hash) != want || closure.Missing(testPath(n).Hash) != (n == 9) {
			t.Errorf("item %d: %v, missing %v", n, !want, closure.Missing(testPath(n).Hash))
		}
	}
	if items, missing := closure.Len(); items != 4 || missing != 1 {
		t.Errorf("%d items, %d missing", items, missing)
	}
	err = x.Update(t.Context(), func(tx *Tx) error {
		first, err1 := tx.Unpin(testPath(1).Hash)
		second, err2 := tx.Unpin(testPath(1).Hash)
		if !first || second {
			t.Error("an item was unpinned twice")
		}
		return errors.Join(err1, err2)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSettings(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	for _, value := range []string{"a", "b", "", "c"} {
		if err := x.Update(t.Context(), func(tx *Tx) error { return tx.SetSetting("name", value) }); err != nil {
			t.Fatal(err)
		}
		if got, err := x.Setting(t.Context(), "name"); err != nil || got != value {
			t.Errorf("%q, %v; want %q", got, err, value)
		}
	}
}

func TestCandidates(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const count = 30
	for n := range count {
		put(t, x, testNarinfo(n, 1, nil, 10))
	}
	used := time.Now().Add(time.Hour)
	var last int64
	err := x.Update(t.Context(), func(tx *Tx) error {
		_, err := tx.CountUses([]Uses{{Hash: testPath(3).Hash, Count: 1, Last: used}}, 1)
		if err != nil {
			return err
		}
		if _, err := tx.Withdraw(testPath(5).Hash, time.Now()); err != nil {
			return err
		}
		item, err := tx.Item(testPath(4).Hash)
		if err != nil {
			return err
		}
		if err := tx.Unstore(item, testNarinfo(4, 1, nil, 10), time.Now()); err != nil {
			return err
		}
		_, last, _, err = tx.ChangedSince(0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	all := func(until time.Time, limit int) (found []Candidate) {
		for cursor, more := int64(0), true; more; {
			var page []Candidate
			if page, more, err = x.Candidates(t.Context(), time.Time{}, until, &cursor, limit); err != nil {
				t.Fatal(err)
			}
			found = append(found, page...)
		}
		return found
	}
	for _, limit := range []int{1, 7, 100} {
		if found := all(used.Add(time.Hour), limit); len(found) != count-2 || !found[3].LastUsed.Equal(used.Truncate(time.Millisecond)) {
			t.Errorf("in steps of %d: %d candidates", limit, len(found))
		}
		if found := all(used, limit); len(found) != count-3 {
			t.Errorf("in steps of %d: %d candidates are unused", limit, len(found))
		}
	}
	if found := all(time.UnixMilli(0), 10); len(found) != 0 {
		t.Errorf("%d candidates before the zero time", len(found))
	}
	cursor := int64(0)
	if late, _, err := x.Candidates(t.Context(), used, used.Add(time.Hour), &cursor, 10); err != nil || len(late) != 1 || late[0].Hash != testPath(3).Hash {
		t.Errorf("%d candidates were used after the limit, %v", len(late), err)
	}
	wantTotals(t, x, Totals{count, count - 1, 10 * (count - 1)})
	err = x.Update(t.Context(), func(tx *Tx) error {
		item, err := tx.Item(testPath(6).Hash)
		if err != nil {
			return err
		}
		if err := tx.Unstore(item, testNarinfo(4, 1, nil, 10), time.Now()); err != nil {
			return err
		}
		changed, newest, complete, err := tx.ChangedSince(last)
		if err != nil || !complete || len(changed) != 1 || changed[testPath(6).Hash] != StorageChanged || newest != last+1 {
			t.Errorf("%v, %d, %v, %v", changed, newest, complete, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
