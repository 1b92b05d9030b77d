package index

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestBuild: an index of a Builder is intact and complete, has the last one of duplicate
// items, and the referrers of all, and accepts more items.
func TestBuild(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	for _, count := range []int{0, 1, 3000} {
		path := filepath.Join(t.TempDir(), "built.db")
		b, err := Build(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		want := make(map[narinfo.PathHash]*narinfo.Narinfo)
		for range count {
			n := testNarinfo(random.IntN(count), 1+random.IntN(3), []int{random.IntN(10), random.IntN(count)}, int64(random.IntN(2)*10))
			entry := b.Prepare(n)
			entry.AddedAt = testTime
			row := b.Row(entry)
			if err := b.Add(&row); err != nil {
				t.Fatal(err)
			}
			want[n.StorePath.Hash] = n
		}
		items, err := b.Finish(t.Context(), map[string]string{"test": "x"})
		if err != nil || items != int64(len(want)) {
			t.Fatalf("%d items, %v; want %d", items, err, len(want))
		}
		x := openAt(t, path)
		if err := x.writer.checkIntegrity(t.Context()); err != nil {
			t.Error(err)
		}
		referrers := make(map[narinfo.PathHash][]narinfo.PathHash)
		for hash, n := range want {
			item, err := x.Item(t.Context(), hash)
			if err != nil || string(item.Text) != string(n.Text) || !item.AddedAt.Equal(testTime.Truncate(time.Second)) || !item.Mirrored || item.Stored != 0 {
				t.Fatalf("%v, %v; want %s", item, err, n.Text)
			}
			for _, reference := range n.References {
				referrers[reference.Hash] = append(referrers[reference.Hash], hash)
			}
		}
		for hash, want := range referrers {
			got, err := x.Referrers(t.Context(), hash)
			compare := func(a, b narinfo.PathHash) int { return slices.Compare(a[:], b[:]) }
			slices.SortFunc(got, compare)
			slices.SortFunc(want, compare)
			if err != nil || !slices.Equal(got, slices.Compact(want)) {
				t.Fatalf("referrers of %s: %v, %v; want %v", hash, got, err, want)
			}
		}
		put(t, x, testNarinfo(count+1, 1, nil, 10))
		if totals, err := x.Totals(t.Context()); err != nil || totals.Items != int64(len(want))+1 {
			t.Errorf("%+v, %v", totals, err)
		}
	}
}
