package search

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// TestPaging: pages stay consistent while items are added and removed.
func TestPaging(t *testing.T) {
	t.Parallel()
	x := openIndex(t, filepath.Join(t.TempDir(), "index.db"))
	s := newTest(t, x)
	for n := range 30 {
		put(t, x, n, fmt.Sprintf("pkg-1.%d", n%10))
	}
	follow(t, s)
	seen := make(map[string]int)
	after := ""
	for n := 30; ; n++ {
		result, err := s.Search(t.Context(), query(t, "pkg"), after, 2)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range result.Items {
			seen[m.Hash.String()]++
		}
		if after = result.Next; after == "" {
			break
		}
		put(t, x, n, fmt.Sprintf("pkg-1.%d", n%10))
		follow(t, s)
		if n%5 == 0 {
			remove(t, x, n) // again
			if err := s.sweep(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}
	for n := range 30 {
		if seen[testHash(n).String()] != 1 {
			t.Errorf("item %d was seen %d times", n, seen[testHash(n).String()])
		}
	}
}

// TestManyRemoved: a search looks beyond removed items, within bounds, and a sweep drops them.
func TestManyRemoved(t *testing.T) {
	t.Parallel()
	x := openIndex(t, filepath.Join(t.TempDir(), "index.db"))
	s := newTest(t, x)
	names := slices.Repeat([]string{"pkg"}, 100)
	put(t, x, 0, append(names, "pkg-last")...)
	follow(t, s)
	var removed []int
	for n := range 100 {
		removed = append(removed, n)
	}
	remove(t, x, removed...)
	follow(t, s)
	result, err := s.Search(t.Context(), query(t, "pkg"), "", 2)
	if err != nil || len(result.Items) != 0 || result.Next == "" {
		t.Errorf("the first page is %+v, %v, want none yet", result, err)
	}
	wantNames(t, s, "pkg", "pkg-last")
	s.swept = time.Now().Add(-sweepInterval)
	follow(t, s)
	if state := s.State(); state.Indexed != 1 || state.Items != 1 {
		t.Errorf("after the sweep, the state is %+v", state)
	}
	result, err = s.Search(t.Context(), query(t, "pkg"), "", 2)
	if err != nil || len(result.Items) != 1 || result.Total != 1 || result.Next != "" {
		t.Errorf("after the sweep, the first page is %+v, %v", result, err)
	}
}
