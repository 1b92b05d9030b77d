package index

import (
	"path/filepath"
	"testing"
	"time"
)

func watch(t testing.TB, x *Index) *Watcher {
	t.Helper()
	w, err := x.Watch(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// poll returns the changes, which must be complete.
func poll(t testing.TB, w *Watcher) []Change {
	t.Helper()
	changes, complete, err := w.Poll()
	if err != nil || !complete {
		t.Fatalf("Poll: %d changes, complete %v, %v", len(changes), complete, err)
	}
	return changes
}

// TestWatch receives changes of the same handle and of another one.
func TestWatch(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	x := openAt(t, path)
	put(t, x, testNarinfo(0, 1, nil, 1)) // before the watcher starts
	for name, writer := range map[string]*Index{"own": x, "other": openAt(t, path)} {
		w := watch(t, x)
		if changes := poll(t, w); len(changes) != 0 {
			t.Errorf("%s: changes from before: %v", name, changes)
		}
		item := testNarinfo(1, 1, nil, 1)
		hash := item.StorePath.Hash
		put(t, writer, item)
		removedAt := testTime.Add(time.Hour)
		update(t, writer, func(tx *Tx) error { return tx.SetStored(hash, 0, nil, time.Time{}) })
		update(t, writer, func(tx *Tx) error { return tx.Remove(hash, removedAt) })
		changes := poll(t, w)
		if len(changes) != 3 {
			t.Fatalf("%s: changes are %v, want three", name, changes)
		}
		for i, kind := range []ChangeKind{Added, StorageChanged, Removed} {
			if changes[i].Kind != kind || changes[i].Hash != hash || i > 0 && changes[i].ID != changes[i-1].ID+1 {
				t.Errorf("%s: change %d is %+v, want kind %d of the item", name, i, changes[i], kind)
			}
		}
		if !changes[0].At.Equal(testTime) || !changes[2].At.Equal(removedAt) || changes[2].StorePath != item.StorePath.String() {
			t.Errorf("%s: times or path: %+v", name, changes)
		}
		for range 2 {
			if changes := poll(t, w); len(changes) != 0 {
				t.Errorf("%s: reported twice: %v", name, changes)
			}
		}
	}
}

// TestChangeTime: mirrors that follow the log by time must receive a replacement.
func TestChangeTime(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	w := watch(t, x)
	put(t, x, testNarinfo(1, 1, nil, 1))
	later := testTime.Add(24 * time.Hour)
	update(t, x, func(tx *Tx) error {
		n := testNarinfo(1, 2, nil, 1)
		old, err := tx.Item(n.StorePath.Hash)
		if err != nil {
			return err
		}
		entry := x.Prepare(n)
		entry.AddedAt = later
		return tx.Put(entry, old)
	})
	if changes := poll(t, w); len(changes) != 2 || !changes[1].At.Equal(later) {
		t.Errorf("changes are %+v, want the second at %v", changes, later)
	}
}

// TestWatchGap: if the log was trimmed, the watcher reports incomplete changes.
func TestWatchGap(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		trim     string
		complete bool
	}{
		"all":           {"DELETE FROM recent_changes", false},
		"the oldest":    {"DELETE FROM recent_changes WHERE id <= 3", false},
		"one amidst":    {"DELETE FROM recent_changes WHERE id = 4", false},
		"the newest":    {"DELETE FROM recent_changes WHERE id = 5", false},
		"what is known": {"DELETE FROM recent_changes WHERE id <= 2", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			x := openTest(t)
			put(t, x, testNarinfo(1, 1, nil, 1))
			put(t, x, testNarinfo(2, 1, nil, 1))
			w := watch(t, x)
			for n := 3; n <= 5; n++ {
				put(t, x, testNarinfo(n, 1, nil, 1))
			}
			update(t, x, func(tx *Tx) error { return tx.conn.exec(test.trim) })
			changes, complete, err := w.Poll()
			if err != nil || complete != test.complete {
				t.Fatalf("Poll: %v, complete %v, %v; want complete %v", changes, complete, err, test.complete)
			}
			if complete && len(changes) != 3 || !complete && len(changes) != 0 {
				t.Errorf("changes are %v", changes)
			}
			// Later polls are complete.
			if changes := poll(t, w); len(changes) != 0 {
				t.Errorf("changes are %v", changes)
			}
			put(t, x, testNarinfo(6, 1, nil, 1))
			if changes := poll(t, w); len(changes) != 1 || changes[0].Hash != testPath(6).Hash {
				t.Errorf("changes are %v, want item 6", changes)
			}
		})
	}
}

// TestWatchTooMany: too many changes are not listed.
func TestWatchTooMany(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	w := watch(t, x)
	w.maxPoll = 100
	add := func(count int) {
		update(t, x, func(tx *Tx) error {
			return tx.conn.exec(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)
				INSERT INTO recent_changes (at, kind, hash) SELECT 0, 1, zeroblob(20) FROM n`, int64(count))
		})
	}
	add(100)
	if changes := poll(t, w); len(changes) != 100 {
		t.Errorf("%d changes, want 100", len(changes))
	}
	add(101)
	if changes, complete, err := w.Poll(); err != nil || complete || len(changes) != 0 {
		t.Errorf("Poll: %d changes, complete %v, %v; want it incomplete", len(changes), complete, err)
	}
	put(t, x, testNarinfo(1, 1, nil, 1))
	if changes := poll(t, w); len(changes) != 1 {
		t.Errorf("changes are %v, want one", changes)
	}
}
