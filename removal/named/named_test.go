package named

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/removal/pins"
	"nar-herder/removal/removaltest"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
)

// do removes items, and returns the errors by item.
func do(t testing.TB, p *removaltest.Place, named Remover, numbers ...int) map[int]error {
	t.Helper()
	named.Storage = p.Storage
	results := make(map[int]error)
	n := 0
	err := named.Do(t.Context(), removaltest.Hashes(numbers...), func(r storage.Removal) {
		if r.Hash != removaltest.Path(numbers[n]).Hash {
			t.Errorf("result %d is of %s", n, r.Hash)
		}
		results[numbers[n]] = r.Err
		n++
	})
	if err != nil || n != len(numbers) {
		t.Errorf("%d results, %v", n, err)
	}
	return results
}

func TestNamed(t *testing.T) {
	t.Parallel()
	for _, named := range []Remover{{Now: true}, {}, {DryRun: true, Now: true}, {DryRun: true}, {Now: true, Force: true}} {
		p := removaltest.Open(t, t.TempDir())
		// 1 needs 2, which needs 3; 4 needs 3 as well; 5 is alone.
		p.AddItem(t, 3)
		p.AddItem(t, 2, 3)
		p.AddItem(t, 1, 2)
		p.AddItem(t, 4, 3)
		p.AddItem(t, 5)
		p.Pin(t, 1)
		results := do(t, p, named, 1, 2, 3, 4, 9, 5)
		for n := range 6 {
			if n == 0 {
				continue
			}
			var pinned *PinnedError
			kept := n <= 3 && !named.Force
			if errors.As(results[n], &pinned) != kept || !kept && results[n] != nil {
				t.Errorf("%+v: item %d: %v", named, n, results[n])
			}
			if kept && (pinned.Pin != removaltest.Path(1).BaseName() || pinned.Itself != (n == 1)) {
				t.Errorf("%+v: item %d: %+v", named, n, pinned)
			}
			if has := p.Has(t, n); has != (kept || named.DryRun || !named.Now) {
				t.Errorf("%+v: item %d is there: %v", named, n, has)
			}
			_, err := p.Text(t.Context(), removaltest.Path(n).Hash)
			if told := err == nil; told != (kept || named.DryRun) {
				t.Errorf("%+v: item %d is visible to clients: %v", named, n, told)
			}
		}
		if !errors.Is(results[9], storage.ErrNotFound) {
			t.Errorf("%+v: an item that is not there: %v", named, results[9])
		}
	}
}

// TestManyNamed: more items than a batch has, with a pinned one in each batch.
func TestManyNamed(t *testing.T) {
	t.Parallel()
	p := removaltest.Open(t, t.TempDir())
	var numbers []int
	for n := range 2*storage.BatchSize + 10 {
		p.AddItem(t, n)
		numbers = append(numbers, n)
	}
	for n := 0; n < len(numbers); n += 50 {
		p.Pin(t, n)
	}
	results := do(t, p, Remover{Now: true}, numbers...)
	for _, n := range numbers {
		if kept := n%50 == 0; p.Has(t, n) != kept || (results[n] != nil) != kept {
			t.Errorf("item %d: %v", n, results[n])
		}
	}
}

// TestPinRace: between the decision and the transaction, another connection sets a pin, or
// adds an item that extends a pin's closure.
func TestPinRace(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(p *removaltest.Place){
		"pin":         func(p *removaltest.Place) { p.Pin(t, 1) },
		"pin itself":  func(p *removaltest.Place) { p.Pin(t, 2) },
		"item":        func(p *removaltest.Place) { p.AddItem(t, 7, 2) },
		"item before": func(p *removaltest.Place) { p.AddItem(t, 8, 1) },
		"text":        func(p *removaltest.Place) { p.AddItem(t, 6, 1) },
		"unrelated":   func(p *removaltest.Place) { p.Pin(t, 50); p.AddItem(t, 51, 2) },
	} {
		for _, now := range []bool{false, true} {
			p := removaltest.Open(t, t.TempDir())
			other := removaltest.Open(t, p.Dir)
			p.AddItem(t, 2)
			p.AddItem(t, 1, 2)
			p.AddItem(t, 6)
			p.Pin(t, 6)
			p.Pin(t, 7) // unknown item
			p.Pin(t, 8)
			pinned, err := pins.Read(t.Context(), p.Index)
			if err != nil {
				t.Fatal(err)
			}
			change(other)
			named := Remover{Storage: p.Storage, Now: now}
			removals, err := named.batch(t.Context(), removaltest.Hashes(2), &pinned)
			if err != nil {
				t.Fatal(err)
			}
			var refused *PinnedError
			if kept := errors.As(removals[0].Err, &refused); kept != (name != "unrelated") || removals[0].Err != nil && !kept {
				t.Errorf("%s, now %v: %+v", name, now, removals[0])
			}
			if _, err := p.Text(t.Context(), removaltest.Path(2).Hash); (err == nil) != (name != "unrelated") {
				t.Errorf("%s, now %v: %v", name, now, err)
			}
		}
	}
}

// TestBatchFails: if one item can't be removed, the others of its batch are.
func TestBatchFails(t *testing.T) {
	t.Parallel()
	p := removaltest.Open(t, t.TempDir())
	numbers := []int{1, 2, 3, 4, 5}
	for _, n := range numbers {
		p.AddItem(t, n)
	}
	named := Remover{Storage: p.Storage, Now: true}
	broken := errors.New("broken")
	one := func(bad ...int) map[int]error {
		results := make(map[int]error)
		guarded := named
		guarded.fault = func(batch []narinfo.PathHash) error {
			for _, n := range bad {
				if slices.Contains(batch, removaltest.Path(n).Hash) {
					return broken
				}
			}
			return nil
		}
		err := guarded.Do(t.Context(), removaltest.Hashes(numbers...), func(r storage.Removal) {
			for _, n := range numbers {
				if removaltest.Path(n).Hash == r.Hash {
					results[n] = r.Err
				}
			}
		})
		if err != nil {
			t.Error(err)
		}
		return results
	}
	results := one(2)
	for _, n := range numbers {
		if bad := n == 2; p.Has(t, n) != bad || errors.Is(results[n], broken) != bad {
			t.Errorf("item %d: %v", n, results[n])
		}
	}
	// After several failures in a row, the items are not the cause.
	for _, n := range numbers {
		p.AddItem(t, n)
	}
	results = one(1, 2, 3)
	for _, n := range numbers {
		if !p.Has(t, n) || !errors.Is(results[n], broken) {
			t.Errorf("item %d: %v", n, results[n])
		}
	}
}

// TestLastBroken: the last items, with missing files, are removed from a storage with its
// owner file.
func TestLastBroken(t *testing.T) {
	t.Parallel()
	for _, owned := range []bool{true, false} {
		p := removaltest.Open(t, t.TempDir())
		p.AddItem(t, 1)
		files, err := directory.Open(filepath.Join(p.Dir, "store"))
		if err != nil {
			t.Fatal(err)
		}
		defer files.Close()
		options := storage.Options{MayWrite: func(context.Context) error {
			if owned {
				return nil
			}
			return errors.New("no owner file")
		}}
		if err := os.Remove(p.File(1)); err != nil {
			t.Fatal(err)
		}
		named := Remover{Storage: storage.New(p.Index, files, options), Now: true}
		removed := false
		err = named.Do(t.Context(), removaltest.Hashes(1), func(r storage.Removal) { removed = r.Err == nil })
		if removed != owned || (err == nil) != owned {
			t.Errorf("owned: %v, removed: %v, %v", owned, removed, err)
		}
	}
}

func TestBroken(t *testing.T) {
	t.Parallel()
	p := removaltest.Open(t, t.TempDir())
	p.AddItem(t, 1, 1)
	p.AddItem(t, 2, 1)
	p.AddItem(t, 3, 1, 2)
	p.AddItem(t, 4, 3)
	p.AddItem(t, 5, 1)
	if _, err := p.WithdrawAll(t.Context(), removaltest.Hashes(5), nil); err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		t.Helper()
		for _, test := range []struct{ gone, want []int }{
			{[]int{1}, []int{2, 3}}, {[]int{1, 2}, []int{3}}, {[]int{1, 2, 3}, []int{4}}, {[]int{4}, nil}, {nil, nil}, {[]int{77}, nil},
		} {
			gone := make(map[narinfo.PathHash]struct{})
			for _, hash := range removaltest.Hashes(test.gone...) {
				gone[hash] = struct{}{}
			}
			some, count, err := Broken(t.Context(), p.Index, gone, 10)
			slices.SortFunc(some, func(a, b narinfo.PathHash) int { return bytes.Compare(a[:], b[:]) })
			if err != nil || count != len(test.want) || !slices.Equal(some, removaltest.Hashes(test.want...)) {
				t.Errorf("%s: without %v: %v, %d, %v; want %v", what, test.gone, some, count, err, test.want)
			}
			if some, count, _ := Broken(t.Context(), p.Index, gone, 1); len(some) > 1 || count != len(test.want) {
				t.Errorf("%s: at most one: %v, %d", what, some, count)
			}
		}
	}
	check("by reading all") // of few items, one is many
	err := p.Index.Update(t.Context(), func(tx *index.Tx) error {
		for n := 1000; n < 1400; n++ {
			parsed, err := narinfo.Parse(fmt.Appendf(nil, "StorePath: %s\nNarHash: sha256:%s\nNarSize: 5\nReferences: \nURL: nar/%s\nCompression: none\n", removaltest.Path(n), strings.Repeat("0", 52), removaltest.Path(n).BaseName()))
			if err != nil {
				return err
			}
			if err := tx.Put(p.Index.Prepare(parsed), nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	check("by looking up")
}
