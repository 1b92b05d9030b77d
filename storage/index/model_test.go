package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// model is an index made of maps.
type model map[int]modelItem

type modelItem struct {
	info   *narinfo.Narinfo
	refs   []int
	stored uint64
	sizes  []int64
	tags   map[Tag]bool
	order  int
}

// TestModel applies thousands of random operations to an index and to the model, through
// two handles. Some transactions are rolled back.
func TestModel(t *testing.T) {
	t.Parallel()
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "db")
			handles := []*Index{openAt(t, path), openAt(t, path)}
			random := rand.New(rand.NewPCG(seed, 1))
			want := model{}
			order := 0
			for transaction := range 150 {
				x := handles[random.IntN(2)]
				next := maps.Clone(want)
				failure := errors.New("rolled back")
				fails := random.IntN(5) == 0
				err := x.Update(t.Context(), func(tx *Tx) error {
					for range 1 + random.IntN(12) {
						order++
						if err := step(tx, x, random, next, order); err != nil {
							return err
						}
					}
					if fails {
						return failure
					}
					return nil
				})
				if fails != errors.Is(err, failure) || !fails && err != nil {
					t.Fatal(err)
				}
				if !fails {
					want = next
				}
				if transaction%10 == 9 {
					compare(t, handles[random.IntN(2)], want)
				}
			}
			wantSound(t, handles[0])
		})
	}
}

const modelItems = 60

// step applies a random operation to both.
func step(tx *Tx, x *Index, random *rand.Rand, m model, order int) error {
	n := random.IntN(modelItems)
	old, known := m[n]
	hash := testPath(n).Hash
	switch kind := random.IntN(10); {
	case kind < 6: // put
		item := modelItem{tags: old.tags, order: old.order}
		if !known {
			item.order = order
		}
		for range random.IntN(8) {
			item.refs = append(item.refs, random.IntN(modelItems))
		}
		var fileSizes []int64
		for range 1 + random.IntN(3) {
			fileSizes = append(fileSizes, random.Int64N(1000))
		}
		item.stored = random.Uint64N(1 << len(fileSizes))
		if random.IntN(4) == 0 {
			item.sizes = slices.Clone(fileSizes)
			for i := range fileSizes {
				fileSizes[i] = -1
			}
		}
		item.info = testNarinfo(n, order, item.refs, fileSizes...)
		m[n] = item
		return putIn(tx, x, item.info, item.stored, item.sizes)
	case kind < 7:
		err := tx.Remove(hash, testTime)
		if known == (err == ErrNotFound) {
			return fmt.Errorf("remove %d, known %v: %w", n, known, err)
		}
		delete(m, n)
	case kind < 8 && known:
		old.stored = random.Uint64N(1 << len(old.info.Files))
		m[n] = old
		return tx.SetStored(hash, old.stored, old.sizes, time.Time{})
	case kind < 9 && known:
		tag := Tag{fmt.Sprint("k", random.IntN(2)), fmt.Sprint("v", random.IntN(3))}
		tags := maps.Clone(old.tags)
		if tags == nil {
			tags = map[Tag]bool{}
		}
		tags[tag] = true
		old.tags = tags
		m[n] = old
		return tx.AddTags(hash, []Tag{tag})
	default:
		item, err := tx.Item(hash)
		if !known && err != ErrNotFound || known && (err != nil || !bytes.Equal(item.Text, old.info.Text)) {
			return fmt.Errorf("item %d, known %v, within the transaction: %v, %w", n, known, item, err)
		}
		missing, err := tx.Missing([]narinfo.StorePath{testPath(n)})
		if err != nil || known != (len(missing) == 0) {
			return fmt.Errorf("item %d, known %v, is missing: %v, %w", n, known, missing, err)
		}
	}
	return nil
}

// compare asserts that the index matches the model.
func compare(t *testing.T, x *Index, want model) {
	t.Helper()
	var totals Totals
	referring := map[int][]int{}
	for n, item := range want {
		totals.Items++
		totals.StoredNars += int64(bits.OnesCount64(item.stored))
		size, err := storedSize(item.info, item.stored, item.sizes)
		if err != nil {
			t.Fatal(err)
		}
		totals.StoredSize += size
		for _, ref := range item.refs {
			if !slices.Contains(referring[ref], n) {
				referring[ref] = append(referring[ref], n)
			}
		}
		got, err := x.Item(context.Background(), testPath(n).Hash)
		if err != nil || !bytes.Equal(got.Text, item.info.Text) || got.Stored != item.stored || !slices.Equal(got.Sizes, item.sizes) {
			t.Errorf("item %d is %+v, %v; want %+v", n, got, err, item)
		}
		tags, err := x.Tags(context.Background(), testPath(n).Hash)
		if err != nil || len(tags) != len(item.tags) {
			t.Errorf("item %d has the tags %v, %v; want %v", n, tags, err, item.tags)
		}
	}
	wantTotals(t, x, totals)
	for n := range modelItems {
		slices.Sort(referring[n])
		if got := referrers(t, x, n, modelItems); !slices.Equal(got, referring[n]) {
			t.Errorf("referrers of %d are %v, want %v", n, got, referring[n])
		}
		if _, known := want[n]; !known {
			if _, err := x.Text(context.Background(), testPath(n).Hash); err != ErrNotFound {
				t.Errorf("item %d, which was removed: %v", n, err)
			}
		}
	}
	inOrder := slices.SortedFunc(maps.Keys(want), func(a, b int) int { return want[a].order - want[b].order })
	for _, filter := range [][]Tag{nil, {{"k0", "v0"}}, {{"k0", "v0"}, {"k1", "v1"}}} {
		var hashes []narinfo.PathHash
		for _, item := range items(t, x, filter...) {
			hashes = append(hashes, item.Hash)
		}
		expected := slices.DeleteFunc(slices.Clone(inOrder), func(n int) bool {
			return slices.ContainsFunc(filter, func(tag Tag) bool { return !want[n].tags[tag] })
		})
		if got := numbers(t, hashes, modelItems); !slices.Equal(got, expected) {
			t.Errorf("items with %v are %v, want %v", filter, got, expected)
		}
	}
}
