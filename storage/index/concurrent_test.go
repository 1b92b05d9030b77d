package index

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
)

// TestTwoHandles: several goroutines write concurrently through two handles on one file, as
// two processes would have.
func TestTwoHandles(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	handles := []*Index{openAt(t, path), openAt(t, path)}
	const goroutines, each = 4, 15
	var group sync.WaitGroup
	for g := range goroutines {
		x := handles[g%2]
		group.Go(func() {
			for i := range each {
				n := 1 + g*each + i
				err := x.Update(context.Background(), func(tx *Tx) error {
					return errors.Join(
						putIn(tx, x, testNarinfo(n, 1, []int{0, n}, 10), 1, nil),
						tx.AddTags(testPath(n).Hash, []Tag{{"by", fmt.Sprint(g % 2)}}),
						// All goroutines write this item.
						putIn(tx, x, testNarinfo(0, n, []int{n}, int64(n)), 1, nil))
				})
				if err != nil {
					t.Error(err)
					return
				}
				// Both handles see new rows at once.
				for _, reader := range handles {
					if _, err := reader.Text(context.Background(), testPath(n).Hash); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	for _, x := range handles {
		if got := referrers(t, x, 0, goroutines*each+1); len(got) != goroutines*each {
			t.Errorf("%d referrers, want %d", len(got), goroutines*each)
		}
		if got := items(t, x, Tag{"by", "0"}); len(got) != goroutines*each/2 {
			t.Errorf("%d items with the tag, want %d", len(got), goroutines*each/2)
		}
		item, err := x.Item(t.Context(), testPath(0).Hash)
		if err != nil {
			t.Fatal(err)
		}
		_, size, err := item.parsed()
		if err != nil {
			t.Fatal(err)
		}
		wantTotals(t, x, Totals{goroutines*each + 1, goroutines*each + 1, goroutines*each*10 + size})
	}
	wantSound(t, handles[0])
}

// TestProcesses: several processes create the same database concurrently, and write to it.
func TestProcesses(t *testing.T) {
	t.Parallel()
	const processes, each = 5, 4
	for range 2 {
		path := filepath.Join(t.TempDir(), "db")
		var group sync.WaitGroup
		for p := range processes {
			command := helper(t, path, 1+p*each, each)
			group.Go(func() {
				if out, err := command.CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			})
		}
		group.Wait()
		x := openAt(t, path)
		wantTotals(t, x, Totals{processes * each, processes * each, processes * each * 10})
		if got := referrers(t, x, 0, 100); len(got) != processes*each {
			t.Errorf("%d referrers, want %d", len(got), processes*each)
		}
		wantSound(t, x)
	}
}

// TestOpenAtOnce does the same within a process. It has many rounds, because the race
// windows are short.
func TestOpenAtOnce(t *testing.T) {
	t.Parallel()
	for range 8 {
		path := filepath.Join(t.TempDir(), "db")
		var group sync.WaitGroup
		instances := make([]string, 4)
		for i := range instances {
			group.Go(func() {
				x, err := Open(context.Background(), path, Options{})
				if err != nil {
					t.Error(err)
					return
				}
				instances[i] = x.Instance()
				if err := x.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		for _, instance := range instances {
			if instance != instances[0] {
				t.Errorf("instances are %q", instances)
			}
		}
	}
}

// TestReadersDuringWrites: a reader sees only whole transactions, and never blocks.
func TestReadersDuringWrites(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const count = 60
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		defer close(done)
		for version := range count {
			// Two items that always have the same version.
			err := x.Update(context.Background(), func(tx *Tx) error {
				return errors.Join(
					putIn(tx, x, testNarinfo(1, version, nil, int64(version)), 1, nil),
					putIn(tx, x, testNarinfo(2, version, nil, int64(version)), 1, nil))
			})
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 3 {
		group.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				totals, err := x.Totals(context.Background())
				if err != nil || totals.Items%2 != 0 || totals.StoredSize%2 != 0 {
					t.Errorf("totals are %+v, %v: half a transaction", totals, err)
					return
				}
				item, err := x.Item(context.Background(), testPath(1).Hash)
				if err == ErrNotFound {
					continue
				}
				if err != nil {
					t.Error(err)
					return
				}
				if _, _, err := item.parsed(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

// TestPoolWaits: if all connections are in use, a reader waits until its context ends.
func TestPoolWaits(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	var lent []*connection
	for range x.readers.size() {
		c, err := x.readers.take(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		lent = append(lent, c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	result := make(chan error)
	go func() {
		_, err := x.Totals(ctx)
		result <- err
	}()
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("Totals: %v, want context.Canceled", err)
	}
	go func() {
		_, err := x.Totals(context.Background())
		result <- err
	}()
	for _, c := range lent {
		x.readers.give(c)
	}
	if err := <-result; err != nil {
		t.Errorf("Totals: %v", err)
	}
}

// TestPoolLendsLastUsed: the connection that was used last is lent first, and has its pages still. In
// turn, the connections would take each other's pages; see [pool].
func TestPoolLendsLastUsed(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	var used []*connection
	for range 3 {
		if err := x.readers.do(t.Context(), func(c *connection) error {
			used = append(used, c)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if used[0] != used[1] || used[1] != used[2] {
		t.Error("calls that follow each other use several connections")
	}
}
