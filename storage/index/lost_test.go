package index

import (
	"errors"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestLostNars hides an item whose nars are lost, until one is stored again, and reports it to other
// processes and in copies for mirrors.
func TestLostNars(t *testing.T) {
	at := time.Unix(1_700_000_000, 0).UTC()
	stored := func(x *Index, number, version int, files uint64) func(*Tx) error {
		return func(tx *Tx) error {
			entry := x.Prepare(testNarinfo(number, version, nil, 10, 20))
			entry.AddedAt, entry.Stored = at, files
			old, err := tx.Item(entry.Narinfo.StorePath.Hash)
			if err != nil {
				return err
			}
			return tx.Put(entry, old)
		}
	}
	hash := testPath(1).Hash
	for name, test := range map[string]struct {
		change func(x *Index) func(tx *Tx) error
		lost   bool
	}{
		"nothing":          {func(*Index) func(*Tx) error { return func(*Tx) error { return nil } }, true},
		"stored again":     {func(*Index) func(*Tx) error { return func(tx *Tx) error { return tx.SetStored(hash, 2, nil, at) } }, false},
		"still not stored": {func(*Index) func(*Tx) error { return func(tx *Tx) error { return tx.SetStored(hash, 0, nil, at) } }, true},
		"imported":         {func(x *Index) func(*Tx) error { return stored(x, 1, 1, 1) }, false},
		"imported, no nar": {func(x *Index) func(*Tx) error { return stored(x, 1, 1, 0) }, true},
		"withdrawn, restored": {func(*Index) func(*Tx) error {
			return func(tx *Tx) error {
				if _, err := tx.Withdraw(hash, at); err != nil {
					return err
				}
				_, err := tx.Restore(hash, at)
				return err
			}
		}, true},
	} {
		t.Run(name, func(t *testing.T) {
			x := openTest(t)
			put(t, x, testNarinfo(1, 1, nil, 10, 20))
			put(t, x, testNarinfo(2, 1, nil, 10, 20))
			update(t, x, func(tx *Tx) error { return tx.SetStored(hash, 1, nil, at) })
			if err := x.Update(t.Context(), func(tx *Tx) error { return tx.SetLost(hash, at) }); err == nil {
				t.Fatal("an item with a stored file was hidden")
			}
			w, err := x.Watch(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			update(t, x, func(tx *Tx) error {
				if err := tx.SetStored(hash, 0, nil, time.Time{}); err != nil {
					return err
				}
				return tx.SetLost(hash, at)
			})
			update(t, x, test.change(x))
			_, err = x.Text(t.Context(), hash)
			if test.lost != errors.Is(err, ErrLost) || test.lost != errors.Is(err, ErrNotFound) {
				t.Errorf("Text: %v", err)
			}
			if _, _, _, withCached := x.TextAndCached(t.Context(), hash); withCached != err {
				t.Errorf("TextAndCached: %v, Text: %v", withCached, err)
			}
			if _, err := x.Text(t.Context(), testPath(2).Hash); err != nil {
				t.Error(err)
			}
			if _, err := x.Item(t.Context(), hash); err != nil {
				t.Error(err)
			}
			count, err := x.CountLost(t.Context())
			found, more, listErr := x.Lost(t.Context(), new(LostCursor), 10)
			if err != nil || listErr != nil || more || (count == 1) != test.lost || (len(found) == 1) != test.lost {
				t.Errorf("%d lost, %d listed, %v, %v", count, len(found), err, listErr)
			}
			announced := 0
			for _, change := range poll(t, w) {
				if change.Kind == AnnouncementChanged && change.Hash == hash {
					announced++
				}
			}
			if announced != 1 && test.lost || announced != 2 && !test.lost {
				t.Errorf("%d changes of the announcement", announced)
			}
			if page, err := x.ChangesAfter(t.Context(), 0, 100); err != nil || len(page.Changes) > 5 {
				t.Errorf("mirrors get %d changes, %v", len(page.Changes), err)
			} else {
				for _, change := range page.Changes {
					if change.Kind == AnnouncementChanged {
						t.Error("mirrors get the change of the announcement")
					}
				}
			}
			copied := t.TempDir() + "/copy.db"
			if _, err := x.Copy(t.Context(), copied, at, 10); err != nil {
				t.Fatal(err)
			}
			mirror, err := Open(t.Context(), copied, Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer mirror.Close()
			if _, err := mirror.Text(t.Context(), hash); err != nil {
				t.Errorf("a mirror's database: %v", err)
			}
		})
	}
}

// TestLostPages pages through lost items.
func TestLostPages(t *testing.T) {
	x := openTest(t)
	at := time.Unix(1_700_000_000, 0).UTC()
	for number := 1; number <= 5; number++ {
		put(t, x, testNarinfo(number, 1, nil, 10))
		update(t, x, func(tx *Tx) error {
			if err := tx.SetStored(testPath(number).Hash, 0, nil, time.Time{}); err != nil {
				return err
			}
			return tx.SetLost(testPath(number).Hash, at.Add(time.Duration(-number%3)*time.Minute))
		})
	}
	for _, limit := range []int{1, 2, 5, 100} {
		seen := make(map[narinfo.PathHash]bool)
		var cursor LostCursor
		for more := true; more; {
			var page []*Item
			var err error
			if page, more, err = x.Lost(t.Context(), &cursor, limit); err != nil {
				t.Fatal(err)
			}
			for _, item := range page {
				seen[item.Hash] = true
			}
		}
		if len(seen) != 5 {
			t.Errorf("pages of %d: %d items", limit, len(seen))
		}
	}
	put(t, x, testNarinfo(6, 1, nil, 10))
	if newest, err := x.Newest(t.Context(), 5); err != nil || len(newest) != 1 || newest[0].Hash != testPath(6).Hash {
		t.Errorf("the newest items that clients can get are %v, %v", newest, err)
	}
}

// TestBoundVerified: times in the future count as never, unless the clock seems to be behind.
func TestBoundVerified(t *testing.T) {
	x := openTest(t)
	const many = boundBatch + 500
	added := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	update(t, x, func(tx *Tx) error {
		for number := 1; number <= many; number++ {
			entry := x.Prepare(testNarinfo(number, 1, nil, 10))
			entry.AddedAt, entry.Stored, entry.VerifiedAt = added, 1, added.AddDate(50, 0, 0)
			if number == 1 {
				entry.VerifiedAt = added.Add(time.Hour)
			}
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
		}
		return nil
	})
	for _, test := range []struct {
		now  time.Time
		want int64
	}{{added.AddDate(-50, 0, 0), 0}, {added.AddDate(60, 0, 0), 0}, {added.Add(2 * time.Hour), many - 1}, {added.Add(2 * time.Hour), 0}} {
		if n, err := x.BoundVerified(t.Context(), test.now); n != test.want || err != nil {
			t.Errorf("at %v: corrected %d times, %v; want %d", test.now, n, err, test.want)
		}
	}
	sums, err := x.Verification(t.Context())
	if err != nil || sums.Never != many-1 || !sums.Oldest.Equal(added.Add(time.Hour)) {
		t.Errorf("Verification is %+v, %v", sums, err)
	}
}
