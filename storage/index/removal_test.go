package index

import (
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
)

func TestRestore(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, nil, 10))
	hash := testPath(1).Hash
	at := time.UnixMilli(1_000_000).UTC()
	restore := func() (done bool) {
		update(t, x, func(tx *Tx) (err error) {
			done, err = tx.Restore(hash, at)
			return err
		})
		return done
	}
	if restore() {
		t.Error("restored an item that was not withdrawn")
	}
	update(t, x, func(tx *Tx) error {
		_, err := tx.Withdraw(hash, at)
		return err
	})
	if count, err := x.WithdrawnCount(t.Context()); err != nil || count != 1 {
		t.Errorf("%d withdrawn, %v", count, err)
	}
	// Its time can be moved later, but not earlier.
	for n, later := range []time.Duration{time.Hour, -time.Hour} {
		update(t, x, func(tx *Tx) error { return tx.Postpone(hash, at.Add(later)) })
		if item, err := x.Item(t.Context(), hash); err != nil || !item.WithdrawnAt.Equal(at.Add(time.Hour)) || item.DeleteAfter.Sub(item.WithdrawnAt) != narinfo.UnadvertisedTTL+answersKept {
			t.Errorf("step %d: %v, %v, %v", n, item.WithdrawnAt, item.DeleteAfter, err)
		}
	}
	w := watch(t, x)
	if !restore() {
		t.Error("it is not restored")
	}
	if changes := poll(t, w); len(changes) != 1 || changes[0].Kind != Added || changes[0].Hash != hash {
		t.Errorf("changes: %+v", changes)
	}
	if _, err := x.Text(t.Context(), hash); err != nil {
		t.Error(err)
	}
	update(t, x, func(tx *Tx) error { return tx.Postpone(hash, at) })
	if count, err := x.WithdrawnCount(t.Context()); err != nil || count != 0 {
		t.Errorf("%d withdrawn, %v", count, err)
	}
	wantSound(t, x)
}

// TestWithdrawnPlan: the server's query of every second reads only an index.
func TestWithdrawnPlan(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	var plan []string
	err := x.readers.do(t.Context(), func(c *connection) error {
		return c.rows("EXPLAIN QUERY PLAN "+itemColumns+" WHERE n.delete_after <= ? ORDER BY n.delete_after LIMIT ?", []driver.Value{int64(0), int64(1)},
			func(row []driver.Value) (bool, error) {
				plan = append(plan, fmt.Sprint(row[3]))
				return true, nil
			})
	})
	if text := strings.Join(plan, "; "); err != nil || !strings.Contains(text, "narinfos_deletable") || strings.Contains(text, "SCAN") || strings.Contains(text, "TEMP B-TREE") {
		t.Errorf("%s, %v", text, err)
	}
}

func TestClosureRoots(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, []int{2}, 10))
	put(t, x, testNarinfo(2, 1, []int{2, 8}, 20))
	put(t, x, testNarinfo(3, 1, []int{4}, 40))
	put(t, x, testNarinfo(4, 1, nil, 80))
	put(t, x, testNarinfo(5, 1, nil, 160))
	for _, n := range []int{2, 5} {
		update(t, x, func(tx *Tx) error {
			_, err := tx.Withdraw(testPath(n).Hash, time.Now())
			return err
		})
	}
	closure, err := x.Closure(t.Context(), []narinfo.PathHash{testPath(1).Hash, testPath(3).Hash, testPath(9).Hash})
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]int{1: 1, 2: 1, 8: 1, 3: 3, 4: 3, 9: 9, 5: 0} {
		root, has := closure.Root(testPath(n).Hash)
		if has != (want != 0) || has && root != testPath(want).Hash {
			t.Errorf("item %d: root %s, %v; want item %d", n, root, has, want)
		}
	}
	// Without items that have no narinfo, and with withdrawn ones.
	var items []int
	for item, err := range x.ItemsOf(t.Context(), closure) {
		if err != nil {
			t.Fatal(err)
		}
		for n := range 10 {
			if item.Hash == testPath(n).Hash {
				items = append(items, n)
			}
		}
	}
	slices.Sort(items)
	if !slices.Equal(items, []int{1, 2, 3, 4}) {
		t.Errorf("items of the closure: %v", items)
	}
	if closure.Size() != 150 {
		t.Errorf("%d bytes", closure.Size())
	}
	if withdrawn := closure.Withdrawn(); len(withdrawn) != 1 || withdrawn[0] != testPath(2).Hash {
		t.Errorf("withdrawn: %v", withdrawn)
	}
}

// TestReferring compares a scan of all references with single look-ups.
func TestReferring(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const count = referringStep + 100
	update(t, x, func(tx *Tx) error {
		for n := range count {
			if err := putIn(tx, x, testNarinfo(n, 1, []int{n, n / 3, n * 2}, 10), 1, nil); err != nil {
				return err
			}
		}
		_, err := tx.Withdraw(testPath(30).Hash, time.Now())
		return err
	})
	targets := make(map[narinfo.PathHash]struct{})
	want := make(map[narinfo.PathHash]bool)
	for _, n := range []int{0, 7, 10, 1700, count * 2} {
		targets[testPath(n).Hash] = struct{}{}
		referrers, err := x.Referrers(t.Context(), testPath(n).Hash)
		if err != nil {
			t.Fatal(err)
		}
		for _, hash := range referrers {
			if hash != testPath(n).Hash && hash != testPath(30).Hash {
				want[hash] = true
			}
		}
	}
	var found []narinfo.PathHash
	for hash, err := range x.Referring(t.Context(), targets) {
		if err != nil {
			t.Fatal(err)
		}
		if !want[hash] || slices.Contains(found, hash) {
			t.Errorf("%s is found", hash)
		}
		found = append(found, hash)
	}
	if len(found) != len(want) {
		t.Errorf("%d found, want %d", len(found), len(want))
	}
}
