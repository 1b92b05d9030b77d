package index

import (
	"slices"
	"testing"
	"time"

	"nar-herder/internal/testfs"
	"nar-herder/narinfo"
)

// TestTrimChanges: only the beginning of the log is deleted, and no change that must be
// kept.
func TestTrimChanges(t *testing.T) {
	t.Parallel()
	day := func(n int) time.Time { return testTime.Add(time.Duration(n) * 24 * time.Hour) }
	for _, test := range []struct {
		name string
		upTo int64
		keep int64
		left int64 // the first of ten that is kept
	}{
		{"all conditions let all go", 10, 0, 11},
		{"nothing is in a dump", 0, 0, 1},
		{"some is in a dump", 4, 0, 5},
		{"a dump of the future", 100, 0, 11},
		// The fourth, sixth and eighth don't concern mirrors: the newest three others are
		// 10, 9 and 7.
		{"the newest stay", 10, 3, 7},
		{"the newest four stay", 10, 4, 5},
		{"there are no more", 10, 7, 1},
		{"there are fewer", 10, 1000, 1},
		{"the least counts", 3, 3, 4},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			x := openTest(t)
			update(t, x, func(tx *Tx) error {
				for n := 1; n <= 10; n++ {
					change := Change{At: day(n), Kind: Removed, Hash: narinfo.PathHash{byte(n)}, StorePath: "/gnu/store/x"}
					if n == 4 || n == 6 || n == 8 {
						change.Kind = StorageChanged
					}
					if n == 7 {
						change.At = day(1) // made long before at another instance
					}
					if err := tx.PutChange(change); err != nil {
						return err
					}
				}
				return nil
			})
			w := watch(t, x)
			deleted, err := x.TrimChanges(t.Context(), test.upTo, test.keep)
			if err != nil || deleted != test.left-1 {
				t.Errorf("%d are deleted, %v; want %d", deleted, err, test.left-1)
			}
			page, err := x.ChangesAfter(t.Context(), 0, 100)
			if err != nil || page.First != test.left || page.Last != 10 {
				t.Errorf("the log goes from %d to %d, %v", page.First, page.Last, err)
			}
			if changes := poll(t, w); len(changes) != 0 {
				t.Errorf("mirrors receive %d changes", len(changes))
			}
			if again, err := x.TrimChanges(t.Context(), test.upTo, test.keep); again != 0 || err != nil {
				t.Errorf("again: %d, %v", again, err)
			}
		})
	}
}

// TestTrimMany needs several steps, and ids continue after them.
func TestTrimMany(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const count = 3*trimStep + 17
	update(t, x, func(tx *Tx) error {
		for n := range count {
			if err := tx.PutChange(Change{At: testTime, Kind: Added, Hash: narinfo.PathHash{byte(n)}}); err != nil {
				return err
			}
		}
		return nil
	})
	deleted, err := x.TrimChanges(t.Context(), count, 0)
	if err != nil || deleted != count {
		t.Errorf("%d, %v", deleted, err)
	}
	put(t, x, testNarinfo(1, 1, nil, 1))
	page, err := x.ChangesAfter(t.Context(), count, 10)
	if err != nil || page.First != count+1 || page.Last != count+1 || !slices.Equal(said(page.Changes), []string{testTime.Format(time.DateTime) + " +" + string(testNarinfo(1, 1, nil, 1).Text)}) {
		t.Errorf("%+v, %v", page, err)
	}
}

// TestTrimFull trims the log while the reserve is used.
func TestTrimFull(t *testing.T) {
	t.Parallel()
	x, directory := smallDisk(t, 100)
	if state, err := x.KeepReserve(); state != ReserveKept || err != nil {
		t.Fatalf("%d, %v", state, err)
	}
	testfs.Fill(t, directory)
	if released, err := releaseReserve(x.file); !released || err != nil {
		t.Fatalf("%v, %v", released, err)
	}
	if deleted, err := x.TrimChanges(t.Context(), 1000, 10); deleted != 90 || err != nil {
		t.Errorf("%d changes are deleted, %v; want 90", deleted, err)
	}
}
