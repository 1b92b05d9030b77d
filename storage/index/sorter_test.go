package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestSorter sorts more items than fit into its memory, many with the same name.
func TestSorter(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s, err := newSorter(t.Context(), 64<<10)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"a", "a-1", "a+1", "Z", strings.Repeat("long", 50), strings.Repeat("long", 50) + "er"}
	items := make([]Listed, 30_000)
	for i := range items {
		item := &items[i]
		item.Name = names[random.IntN(len(names))]
		for at := 0; at < len(item.Hash); at += 4 {
			binary.BigEndian.PutUint32(item.Hash[at:], random.Uint32())
		}
		if i%3 == 0 {
			item.WithdrawnAt, item.DeleteAfter = time.Unix(int64(i), 0).UTC(), time.Unix(-int64(i), 0).UTC()
		}
		if err := s.Add(*item); err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(items, func(a, b Listed) int {
		if a.Name != b.Name {
			return strings.Compare(a.Name, b.Name)
		}
		return slices.Compare(a.Hash[:], b.Hash[:])
	})
	i := 0
	for item, err := range s.Sorted(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if item != items[i] {
			t.Fatalf("item %d is %+v, want %+v", i, item, items[i])
		}
		i++
	}
	if i != len(items) {
		t.Errorf("%d items, want %d", i, len(items))
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// TestSorterInterrupted cancels the context before sorting, and while reading the items.
func TestSorterInterrupted(t *testing.T) {
	t.Parallel()
	s, err := NewSorter(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for i := range 10 {
		if err := s.Add(Listed{StorePath: narinfo.StorePath{Name: fmt.Sprint(i)}}); err != nil {
			t.Fatal(err)
		}
	}
	for _, wanted := range []int{0, 5} {
		ctx, cancel := context.WithCancel(t.Context())
		seen := 0
		if wanted == 0 {
			cancel()
		}
		for item, err := range s.Sorted(ctx) {
			if err != nil {
				if !errors.Is(err, context.Canceled) {
					t.Error(err)
				}
				break
			}
			if item.Name != fmt.Sprint(seen) {
				t.Errorf("%+v", item)
			}
			if seen++; seen == wanted {
				cancel()
			}
		}
		cancel()
		if seen != wanted {
			t.Errorf("%d items after %d", seen, wanted)
		}
	}
	for item, err := range s.Sorted(t.Context()) { // only the first
		if err != nil || item.Name != "0" {
			t.Errorf("%+v, %v", item, err)
		}
		break
	}
}
