package index

import (
	"errors"
	"fmt"
	"math"
	"testing"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
)

// putFrom puts an item of an upstream that was added at a time.
func putFrom(t testing.TB, x *Index, n int, origin int64, at time.Time, references ...int) {
	t.Helper()
	update(t, x, func(tx *Tx) error {
		entry := x.Prepare(testNarinfo(n, 1, references, 10))
		entry.AddedAt, entry.Stored, entry.Origin = at, 1, origin
		return tx.Put(entry, nil)
	})
}

func use(t testing.TB, x *Index, n int, at time.Time) {
	t.Helper()
	update(t, x, func(tx *Tx) error {
		_, err := tx.CountUses([]Uses{{Hash: testPath(n).Hash, Count: 1, Last: at}}, math.MaxInt64)
		return err
	})
}

func leastOf(t testing.TB, x *Index, query LeastUsedQuery, limit int) []int {
	t.Helper()
	found, err := x.LeastRecentlyUsed(t.Context(), query, limit)
	if err != nil {
		t.Fatal(err)
	}
	hashes := make([]narinfo.PathHash, len(found))
	for i, used := range found {
		hashes[i] = used.Hash
	}
	return numbers(t, hashes, 100)
}

func TestLeastRecentlyUsed(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	now := time.Now().UTC().Truncate(time.Second)
	ago := func(n int) time.Time { return now.Add(-time.Duration(n) * time.Hour) }
	put(t, x, testNarinfo(1, 1, nil, 10)) // imported
	for n := 2; n <= 9; n++ {
		putFrom(t, x, n, int64(1+n%2), ago(10*n))
	}
	putFrom(t, x, 10, 3, ago(1000)) // of an upstream that is not in use
	use(t, x, 9, ago(1))
	use(t, x, 5, ago(2))
	update(t, x, func(tx *Tx) error { return tx.SetStored(testPath(8).Hash, 0, nil, time.Time{}) })
	query := LeastUsedQuery{Origins: []int64{1, 2}, Now: now}
	for limit, want := range map[int]string{1: "[7]", 3: "[7 6 4]", 7: "[7 6 4 3 2 5 9]", 100: "[7 6 4 3 2 5 9]"} {
		if got := fmt.Sprint(leastOf(t, x, query, limit)); got != want {
			t.Errorf("the first %d are %s, want %s", limit, got, want)
		}
	}
	// Uses that are not recorded yet count.
	query.Uses = map[narinfo.PathHash]time.Time{testPath(7).Hash: now}
	if got := fmt.Sprint(leastOf(t, x, query, 100)); got != "[6 4 3 2 5 9 7]" {
		t.Errorf("with a new use: %s", got)
	}
	// Items that others pin by their references are skipped.
	putFrom(t, x, 11, 1, now, 6)
	var err error
	if query.Kept, err = x.Closure(t.Context(), []narinfo.PathHash{testPath(11).Hash}); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(leastOf(t, x, query, 2)); got != "[4 3]" {
		t.Errorf("with a pin: %s", got)
	}
}

// TestLeastUsedClock: times of a wrong clock count as the earliest, until the next use.
func TestLeastUsedClock(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	now := time.Now().UTC().Truncate(time.Second)
	for n := 1; n <= 4; n++ {
		putFrom(t, x, n, 1, now.Add(-100*time.Hour))
	}
	use(t, x, 1, now.AddDate(1, 0, 0))
	use(t, x, 2, time.Unix(60, 0))
	use(t, x, 3, now.Add(-time.Hour))
	use(t, x, 4, now.Add(stamp.Slack/2)) // set back a little
	query := LeastUsedQuery{Origins: []int64{1}, Now: now}
	if got := fmt.Sprint(leastOf(t, x, query, 9)); got != "[1 2 3 4]" {
		t.Errorf("%s", got)
	}
	use(t, x, 1, now)
	if got := fmt.Sprint(leastOf(t, x, query, 9)); got != "[2 3 1 4]" {
		t.Errorf("after another use: %s", got)
	}
}

func TestUnrequested(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	now := time.Now().UTC().Truncate(time.Second)
	old := now.Add(-100 * time.Hour)
	put(t, x, testNarinfo(1, 1, nil, 10)) // imported
	for n := 2; n <= 7; n++ {
		putFrom(t, x, n, 1, old)
	}
	use(t, x, 3, now)
	update(t, x, func(tx *Tx) error {
		if err := tx.AddTags(testPath(4).Hash, []Tag{{"keep", "yes"}}); err != nil {
			return err
		}
		if _, err := tx.Withdraw(testPath(5).Hash, now); err != nil {
			return err
		}
		return tx.SetOrigin(testPath(6).Hash, 1, now.Add(time.Hour))
	})
	putFrom(t, x, 8, 1, old)
	pinned, err := x.Closure(t.Context(), []narinfo.PathHash{testPath(8).Hash})
	if err != nil {
		t.Fatal(err)
	}
	for _, limit := range []int{1, 10} {
		var all []narinfo.PathHash
		for cursor, more := int64(0), true; more; {
			var found []narinfo.PathHash
			if found, more, err = x.Unrequested(t.Context(), 1, now.Add(-time.Minute), pinned, &cursor, limit); err != nil {
				t.Fatal(err)
			}
			all = append(all, found...)
		}
		if got := fmt.Sprint(numbers(t, all, 20)); got != "[2 7]" {
			t.Errorf("%d at a time: %s", limit, got)
		}
	}
}

// BenchmarkLeastRecentlyUsed looks for candidates among a million stored nars of an upstream,
// half of which were used.
func BenchmarkLeastRecentlyUsed(b *testing.B) {
	x := openTest(b)
	const count = 1_000_000
	const numbers = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
	now := time.Now()
	update(b, x, func(tx *Tx) error {
		return errors.Join(
			tx.conn.exec("INSERT INTO items (id, key, added_at, stored_files, stored_size, origin) "+numbers+" SELECT i, i * 7919, ? - i % 1000 * 3600000, 1, 100000, 1 FROM n", int64(count), now.UnixMilli()),
			tx.conn.exec("INSERT INTO narinfos (id, hash, refs, dictionary, text) "+numbers+" SELECT i, zeroblob(20), x'', 0, zeroblob(600) FROM n", int64(count)),
			tx.conn.exec("INSERT INTO uses (item, count, last_used) "+numbers+" SELECT 2 * i, 1, ? - i % 997 * 3600000 FROM n", int64(count/2), now.UnixMilli()))
	})
	for b.Loop() {
		found, err := x.LeastRecentlyUsed(b.Context(), LeastUsedQuery{Origins: []int64{1}, Now: now}, 10_000)
		if err != nil || len(found) != 10_000 {
			b.Fatal(len(found), err)
		}
	}
}
