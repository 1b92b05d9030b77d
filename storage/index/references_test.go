package index

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
)

// TestPackEdges encodes and decodes edges of every distance.
func TestPackEdges(t *testing.T) {
	t.Parallel()
	const least, most = -1 << 63, 1<<63 - 1
	sets := [][]edge{
		{{0, 1}},
		{{0, 1}, {0, 2}, {0, 1 << 62}},
		{{least, 1}, {least, 2}, {-1, 1}, {0, 1}, {1, 5}, {most, 1}, {most, most}},
		{{least, 1}, {most, 1}},
		{{-5, 100}, {-4, 3}, {-4, 4}, {7, 1}},
	}
	for _, set := range sets {
		var packed []byte
		for i := range set[1:] {
			packed = appendEdge(packed, set[i], set[i+1])
		}
		got, err := unpackEdges(nil, set[0], packed)
		if err != nil || !slices.Equal(got, set) {
			t.Errorf("%v became %v, %v", set, got, err)
		}
		for cut := range packed {
			if got, err := unpackEdges(nil, set[0], packed[:cut]); err == nil && len(got) >= len(set) {
				t.Errorf("%v cut to %d bytes became %v", set, cut, got)
			}
		}
	}
	for _, damaged := range [][]byte{{0x80}, {1}, {1, 0x80}, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}} {
		if got, err := unpackEdges(nil, edge{}, damaged); err == nil {
			t.Errorf("%x became %v, want an error", damaged, got)
		}
	}
}

func TestRunLevel(t *testing.T) {
	t.Parallel()
	for edges, want := range map[int64]int64{1: 0, 7: 0, 8: 1, 63: 1, 64: 2, 511: 2, 512: 3, 1 << 30: 10} {
		if got := runLevel(edges); got != want {
			t.Errorf("a run of %d edges has level %d, want %d", edges, got, want)
		}
	}
}

// TestReferrers: targets with very many referrers in many chunks and runs, beside targets
// with one, at the boundaries of chunks.
func TestReferrers(t *testing.T) {
	t.Parallel()
	for batch, total := range map[int]int{1: 100, 7: 300, 1000: 1000} {
		x := openTest(t)
		want := map[int][]int{}
		refer := func(n int) []int {
			references := []int{0, 1 + n%3, n}
			if n%10 == 0 {
				references = append(references, 10+n/10)
			}
			return references
		}
		for from := 0; from < total; from += batch {
			update(t, x, func(tx *Tx) error {
				for n := from; n < min(total, from+batch); n++ {
					if err := putIn(tx, x, testNarinfo(n, 1, refer(n), 1), 1, nil); err != nil {
						return err
					}
					for _, reference := range refer(n) {
						if !slices.Contains(want[reference], n) {
							want[reference] = append(want[reference], n)
						}
					}
				}
				return nil
			})
		}
		for n := range total {
			if n > 20 && n%97 != 0 {
				continue
			}
			hashes, err := x.Referrers(t.Context(), testPath(n).Hash)
			if err != nil {
				t.Fatal(err)
			}
			if got := numbers(t, hashes, total); !slices.Equal(got, want[n]) {
				t.Errorf("batches of %d: %d referrers of %d, want %d, in insertion order", batch, len(got), n, len(want[n]))
			}
		}
		runs, err := x.writer.integer("SELECT count(*) FROM runs")
		if err != nil || runs > 40 {
			t.Errorf("batches of %d: %d runs, %v", batch, runs, err)
		}
		wantSound(t, x)
	}
}

// TestReferrersOfTheUnknown: a path that is not an item may have referrers.
func TestReferrersOfTheUnknown(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, []int{2, 3, 2}, 1))
	if got := referrers(t, x, 2, 10); !slices.Equal(got, []int{1}) {
		t.Errorf("referrers of a path that is not an item are %v", got)
	}
	if got := referrers(t, x, 1, 10); len(got) != 0 {
		t.Errorf("referrers of an unreferenced item are %v", got)
	}
	if got := referrers(t, x, 7, 10); len(got) != 0 {
		t.Errorf("referrers of an unknown path are %v", got)
	}
	// It is added, removed, and added again.
	for range 3 {
		put(t, x, testNarinfo(2, 1, nil, 1))
		update(t, x, func(tx *Tx) error { return tx.Remove(testPath(2).Hash, testTime) })
		if got := referrers(t, x, 2, 10); !slices.Equal(got, []int{1}) {
			t.Errorf("referrers are %v", got)
		}
	}
	// The referrer is removed, and added again with other references.
	update(t, x, func(tx *Tx) error { return tx.Remove(testPath(1).Hash, testTime) })
	put(t, x, testNarinfo(4, 1, []int{5}, 1))
	if got := referrers(t, x, 2, 10); len(got) != 0 {
		t.Errorf("referrers are %v after the only one was removed", got)
	}
	put(t, x, testNarinfo(1, 2, []int{3}, 1))
	if got := referrers(t, x, 2, 10); len(got) != 0 {
		t.Errorf("referrers are %v after the only one came back without", got)
	}
	if got := referrers(t, x, 3, 10); !slices.Equal(got, []int{1}) {
		t.Errorf("referrers are %v", got)
	}
}

// TestManyReferences writes a narinfo with very many references.
func TestManyReferences(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	references := make([]int, 5000)
	for i := range references {
		references[i] = i
	}
	put(t, x, testNarinfo(5, 1, references, 1))
	for _, n := range []int{0, 1, 5, 2499, 4999} {
		if got := referrers(t, x, n, 10); !slices.Equal(got, []int{5}) {
			t.Errorf("referrers of %d are %v", n, got)
		}
	}
	missing, err := x.MissingReferences(t.Context(), testNarinfo(5, 1, references, 1))
	if err != nil || len(missing) != len(references)-1 {
		t.Errorf("%d are missing, %v; want all but itself", len(missing), err)
	}
}

// TestReferrersWhileMerging: a reader sees all referrers while this or another process
// merges runs.
func TestReferrersWhileMerging(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const lasting = 40
	for n := 1; n <= lasting; n++ {
		put(t, x, testNarinfo(n, 1, []int{0}, 1))
	}
	done := make(chan struct{})
	var group sync.WaitGroup
	group.Go(func() {
		defer close(done)
		random := rand.New(rand.NewPCG(3, 4))
		for i := range 150 {
			n := lasting + 1 + i
			err := x.Update(context.Background(), func(tx *Tx) error {
				return putIn(tx, x, testNarinfo(n, 1, []int{0, random.IntN(50)}, 1), 1, nil)
			})
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 3 {
		group.Go(func() {
			for most := 0; ; {
				select {
				case <-done:
					return
				default:
				}
				hashes, err := x.Referrers(context.Background(), testPath(0).Hash)
				if err != nil {
					t.Error(err)
					return
				}
				if len(hashes) < max(lasting, most) {
					t.Errorf("%d referrers, want at least %d", len(hashes), max(lasting, most))
					return
				}
				most = len(hashes)
			}
		})
	}
	group.Wait()
}
