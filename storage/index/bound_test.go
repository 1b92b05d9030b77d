package index

import (
	"errors"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestWithdrawDamaged: a damaged item that was withdrawn may be deleted once it is
// repaired, whatever repaired it.
func TestWithdrawDamaged(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	at, hash := time.UnixMilli(5_000_000).UTC(), testPath(1).Hash
	update(t, x, func(tx *Tx) error {
		err := putIn(tx, x, testNarinfo(1, 1, nil, 10), 1, nil)
		if err == nil {
			err = tx.conn.exec("UPDATE items SET mirrored = 1")
		}
		return errors.Join(err, tx.conn.exec("UPDATE narinfos SET checksum = checksum + 1"))
	})
	_, err := x.Item(t.Context(), hash)
	var damage *Damage
	if !errors.As(err, &damage) {
		t.Fatalf("%v, want damage", err)
	}
	update(t, x, func(tx *Tx) error {
		done, err := tx.WithdrawDamaged(damage, testPath(1).String(), at, at)
		if !done {
			t.Error("it was not withdrawn")
		}
		return errors.Join(err, tx.conn.exec("UPDATE narinfos SET checksum = checksum - 1"))
	})
	item, err := x.Item(t.Context(), hash)
	if want := at.Add(narinfo.UnadvertisedTTL + answersKept); err != nil || !item.DeleteAfter.Equal(want) {
		t.Errorf("%+v, %v, want it deleted after %v", item, err, want)
	}
}

// TestBoundMissing: items that a program with an older schema withdrew get a deletion time.
func TestBoundMissing(t *testing.T) {
	t.Parallel()
	x := openAt(t, t.TempDir()+"/index.db")
	now := time.Now().UTC().Truncate(time.Millisecond)
	for n := 1; n <= 4; n++ {
		put(t, x, testNarinfo(n, 1, nil, 10))
	}
	update(t, x, func(tx *Tx) (err error) {
		for n, at := range map[int]time.Time{1: now.Add(-time.Hour), 2: now.AddDate(1, 0, 0), 3: time.Unix(60, 0)} {
			hash := testPath(n).Hash
			_, failure := tx.Withdraw(hash, at)
			err = errors.Join(err, failure, tx.PutCached(CachedFile{Hash: hash, Type: "gzip", Size: 1, LastUsed: now}), tx.WithdrawCached(hash, "gzip", at))
		}
		return errors.Join(err, tx.conn.exec("UPDATE narinfos SET delete_after = NULL"), tx.conn.exec("UPDATE cached_files SET delete_after = NULL"))
	})
	// Each table has two wrong withdrawal times.
	for _, want := range []int64{10, 0} {
		if got, err := x.BoundTimes(t.Context(), now); err != nil || got != want {
			t.Errorf("%d times were bounded, want %d, %v", got, want, err)
		}
	}
	due := now.Add(narinfo.UnadvertisedTTL + answersKept)
	for after, want := range map[time.Duration]int{-time.Second: 0, 0: 3} {
		items, err1 := x.DeletableItems(t.Context(), due.Add(after), 10)
		files, err2 := x.Deletable(t.Context(), "gzip", due.Add(after), 10)
		if err := errors.Join(err1, err2); err != nil || len(items) != want || len(files) != want {
			t.Errorf("after %v: %d items and %d files, want %d, %v", after, len(items), len(files), want, err)
		}
	}
	if item, err := x.Item(t.Context(), testPath(4).Hash); err != nil || !item.DeleteAfter.IsZero() {
		t.Errorf("one that is not withdrawn: %+v, %v", item, err)
	}
}
