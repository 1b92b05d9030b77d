package index

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// TestEdgeSorter: edges are sorted and unique, independent of the number of pieces, and
// memory is bounded also if all refer to one item.
func TestEdgeSorter(t *testing.T) {
	t.Parallel()
	const popular = -1 << 63
	seed := rand.Uint64()
	random := rand.New(rand.NewPCG(seed, 0))
	for _, count := range []int{0, 1, 99, 100, 1000, 5000} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			s, err := newEdgeSorter(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer s.close()
			s.pieceEdges, s.maxPieces = 100, 7
			var want []edge
			for referrer := int64(1); len(want) < count; referrer++ {
				for _, target := range []int64{popular, int64(random.Uint64()), 0, popular, -1} {
					e := edge{target, referrer}
					want = append(want, e)
					if err := s.add(e); err != nil {
						t.Fatal(err)
					}
					if len(s.edges) >= s.pieceEdges || len(s.pieces) > s.maxPieces {
						t.Fatalf("%d edges and %d pieces are in memory", len(s.edges), len(s.pieces))
					}
				}
			}
			slices.SortFunc(want, edge.compare)
			want = slices.Compact(want)
			var got []edge
			for part := range s.all(t.Context()) {
				if part.err != nil {
					t.Fatal(part.err)
				}
				got = append(got, part.edges...)
			}
			if !slices.Equal(got, want) {
				t.Errorf("seed %d: %d edges, want %d others", seed, len(got), len(want))
			}
		})
	}
}
