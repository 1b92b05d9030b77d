package index

import (
	"errors"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestBoundTimes: withdrawals and uses at future times are set to now, and nothing else
// changes.
func TestBoundTimes(t *testing.T) {
	t.Parallel()
	x := openAt(t, t.TempDir()+"/index.db")
	for n := 1; n <= 3; n++ {
		put(t, x, testNarinfo(n, 1, nil, 10))
	}
	now := time.Now().UTC().Truncate(time.Millisecond)
	before, soon, ahead := now.Add(-time.Hour), now.Add(time.Hour), now.AddDate(1, 0, 0)
	times := map[int]time.Time{1: before, 2: soon, 3: ahead}
	err := x.Update(t.Context(), func(tx *Tx) error {
		for n, at := range times {
			hash := testPath(n).Hash
			if _, err := tx.Withdraw(hash, at); err != nil {
				return err
			}
			for _, kind := range []string{"zstd", "gzip"} {
				if err := tx.PutCached(CachedFile{Hash: hash, Type: kind, Size: 1, LastUsed: at}); err != nil {
					return err
				}
			}
			if err := tx.WithdrawCached(hash, "gzip", at); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// As on a machine that started without a clock.
	if got, err := x.BoundTimes(t.Context(), time.Unix(60, 0)); err != nil || got != 0 {
		t.Errorf("a slow clock bounded %d times, %v", got, err)
	}
	for _, want := range []int64{6, 0} {
		if got, err := x.BoundTimes(t.Context(), now); err != nil || got != want {
			t.Errorf("%d times were bounded, want %d, %v", got, want, err)
		}
	}
	times[3] = now
	for n, want := range times {
		item, err := x.Item(t.Context(), testPath(n).Hash)
		due := want.Add(narinfo.UnadvertisedTTL + answersKept)
		if err != nil || !item.WithdrawnAt.Equal(want) || !item.DeleteAfter.Equal(due) {
			t.Errorf("item %d: withdrawn at %v, want %v; to be deleted after %v, want %v; %v", n, item.WithdrawnAt, want, item.DeleteAfter, due, err)
		}
		files, err := x.CachedFiles(t.Context(), testPath(n).Hash)
		if err != nil || len(files) != 2 || !files[0].WithdrawnAt.Equal(want) || files[0].DeleteAfter.After(due) || files[0].DeleteAfter.Before(due.Add(-answersKept)) || !files[0].LastUsed.Equal(want) || !files[1].LastUsed.Equal(want) {
			t.Errorf("item %d: %+v, want %v, %v", n, files, want, err)
		}
	}
}

// TestBeforeClock: an item that was withdrawn before the clock was set is deleted a grace
// period after the clock jumps.
func TestBeforeClock(t *testing.T) {
	t.Parallel()
	x := openAt(t, t.TempDir()+"/index.db")
	put(t, x, testNarinfo(1, 1, nil, 10))
	hash, booted, now := testPath(1).Hash, time.Unix(60, 0), time.Now()
	update(t, x, func(tx *Tx) error {
		_, err := tx.Withdraw(hash, booted)
		return errors.Join(err, tx.PutCached(CachedFile{Hash: hash, Type: "gzip", Size: 1, LastUsed: booted}), tx.WithdrawCached(hash, "gzip", booted))
	})
	due := func(until time.Time) int {
		t.Helper()
		items, err1 := x.DeletableItems(t.Context(), until, 10)
		files, err2 := x.Deletable(t.Context(), "gzip", until, 10)
		var cursor WithdrawnCursor
		page, _, err3 := x.WithdrawnPage(t.Context(), until, &cursor, 10)
		if err := errors.Join(err1, err2, err3); err != nil {
			t.Fatal(err)
		}
		if len(page) != len(items) {
			t.Errorf("%d items are due for one removal, and %d for the other", len(page), len(items))
		}
		return len(items) + len(files)
	}
	if n := due(booted.Add(72 * time.Hour)); n != 2 {
		t.Errorf("%d are due before the clock is set", n)
	}
	if n := due(now); n != 0 {
		t.Errorf("%d are due at once", n)
	}
	for _, want := range []int64{5, 0} {
		if got, err := x.BoundTimes(t.Context(), now); err != nil || got != want {
			t.Errorf("%d times were bounded, want %d, %v", got, want, err)
		}
	}
	if n := due(now.Add(narinfo.UnadvertisedTTL - time.Minute)); n != 0 {
		t.Errorf("%d are due too early", n)
	}
	if n := due(now.Add(narinfo.UnadvertisedTTL + time.Hour)); n != 2 {
		t.Errorf("%d are due", n)
	}
}
