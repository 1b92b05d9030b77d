package removal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// place is a storage of a test.
type place struct {
	*storage.Storage
	index *index.Index
	dir   string
}

func open(t testing.TB, dir string) *place {
	t.Helper()
	store := filepath.Join(dir, "store")
	if err := os.MkdirAll(store, 0o755); err != nil {
		t.Fatal(err)
	}
	files, err := directory.Open(store)
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(context.Background(), filepath.Join(dir, "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), files.Close()); err != nil {
			t.Error(err)
		}
	})
	return &place{storage.New(x, files, storage.Options{}), x, dir}
}

func path(n int) narinfo.StorePath {
	path, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-item-%d", n, n))
	if err != nil {
		panic(err)
	}
	return path
}

func hashes(numbers ...int) (hashes []narinfo.PathHash) {
	for _, n := range numbers {
		hashes = append(hashes, path(n).Hash)
	}
	return hashes
}

func (p *place) file(n int) string {
	return filepath.Join(p.dir, "store", "nar", path(n).BaseName())
}

// add adds an item with references.
func (p *place) add(t testing.TB, n int, references ...int) {
	t.Helper()
	text := fmt.Sprintf("StorePath: %s\nNarHash: sha256:%s\nNarSize: 5\nReferences:", path(n), strings.Repeat("0", 52))
	for _, reference := range references {
		text += " " + path(reference).BaseName()
	}
	text += fmt.Sprintf("\nURL: nar/%s\nCompression: none\nFileSize: 5\n", path(n).BaseName())
	parsed, err := narinfo.Parse([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(p.file(n)), 0o755), os.WriteFile(p.file(n), []byte("bytes"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if r := importer.New(p.Storage).Add(t.Context(), &importer.Addition{Narinfo: parsed}); r.Err != nil {
		t.Fatal(r.Err)
	}
}

func (p *place) pin(t testing.TB, n int) {
	t.Helper()
	err := p.index.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Pin(path(n).Hash, time.Now())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// has says whether the item is there with its bytes; they must agree.
func (p *place) has(t testing.TB, n int) bool {
	t.Helper()
	_, rowErr := p.Item(t.Context(), path(n).Hash)
	_, fileErr := os.Stat(p.file(n))
	if rowErr != nil && !errors.Is(rowErr, storage.ErrNotFound) || (rowErr == nil) != (fileErr == nil) {
		t.Errorf("item %d: row %v, file %v", n, rowErr, fileErr)
	}
	return rowErr == nil
}

// do removes items, and returns the errors by item.
func (p *place) do(t testing.TB, named Named, numbers ...int) map[int]error {
	t.Helper()
	named.Storage = p.Storage
	results := make(map[int]error)
	n := 0
	err := named.Do(t.Context(), hashes(numbers...), func(r storage.Removal) {
		if r.Hash != path(numbers[n]).Hash {
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
	for _, named := range []Named{{Now: true}, {}, {DryRun: true, Now: true}, {DryRun: true}, {Now: true, Force: true}} {
		p := open(t, t.TempDir())
		// 1 needs 2, which needs 3; 4 needs 3 as well; 5 is alone.
		p.add(t, 3)
		p.add(t, 2, 3)
		p.add(t, 1, 2)
		p.add(t, 4, 3)
		p.add(t, 5)
		p.pin(t, 1)
		results := p.do(t, named, 1, 2, 3, 4, 9, 5)
		for n := range 6 {
			if n == 0 {
				continue
			}
			var pinned *PinnedError
			kept := n <= 3 && !named.Force
			if errors.As(results[n], &pinned) != kept || !kept && results[n] != nil {
				t.Errorf("%+v: item %d: %v", named, n, results[n])
			}
			if kept && (pinned.Pin != path(1).BaseName() || pinned.Itself != (n == 1)) {
				t.Errorf("%+v: item %d: %+v", named, n, pinned)
			}
			if has := p.has(t, n); has != (kept || named.DryRun || !named.Now) {
				t.Errorf("%+v: item %d is there: %v", named, n, has)
			}
			_, err := p.Text(t.Context(), path(n).Hash)
			if told := err == nil; told != (kept || named.DryRun) {
				t.Errorf("%+v: clients are told of item %d: %v", named, n, told)
			}
		}
		if !errors.Is(results[9], storage.ErrNotFound) {
			t.Errorf("%+v: an item that is not there: %v", named, results[9])
		}
	}
}

// TestManyNamed has more than a batch, and an item that is pinned in each.
func TestManyNamed(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir())
	var numbers []int
	for n := range 2*storage.BatchSize + 10 {
		p.add(t, n)
		numbers = append(numbers, n)
	}
	for n := 0; n < len(numbers); n += 50 {
		p.pin(t, n)
	}
	results := p.do(t, Named{Now: true}, numbers...)
	for _, n := range numbers {
		if kept := n%50 == 0; p.has(t, n) != kept || (results[n] != nil) != kept {
			t.Errorf("item %d: %v", n, results[n])
		}
	}
}

// TestPinRace sets a pin, or brings an item that makes one reach further, between
// the decision and the transaction, by a connection of its own.
func TestPinRace(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(p *place){
		"pin":         func(p *place) { p.pin(t, 1) },
		"pin itself":  func(p *place) { p.pin(t, 2) },
		"item":        func(p *place) { p.add(t, 7, 2) },
		"item before": func(p *place) { p.add(t, 8, 1) },
		"text":        func(p *place) { p.add(t, 6, 1) },
		"unrelated":   func(p *place) { p.pin(t, 50); p.add(t, 51, 2) },
	} {
		for _, now := range []bool{false, true} {
			p := open(t, t.TempDir())
			other := open(t, p.dir)
			p.add(t, 2)
			p.add(t, 1, 2)
			p.add(t, 6)
			p.pin(t, 6)
			p.pin(t, 7) // not known
			p.pin(t, 8)
			pinned, err := ReadPinned(t.Context(), p.index)
			if err != nil {
				t.Fatal(err)
			}
			change(other)
			named := Named{Storage: p.Storage, Now: now}
			removals, err := named.batch(t.Context(), hashes(2), &pinned)
			if err != nil {
				t.Fatal(err)
			}
			var refused *PinnedError
			if kept := errors.As(removals[0].Err, &refused); kept != (name != "unrelated") || removals[0].Err != nil && !kept {
				t.Errorf("%s, now %v: %+v", name, now, removals[0])
			}
			if _, err := p.Text(t.Context(), path(2).Hash); (err == nil) != (name != "unrelated") {
				t.Errorf("%s, now %v: %v", name, now, err)
			}
		}
	}
}

// TestBatchFails has a database in which one item can't be removed: the others of
// its batch are.
func TestBatchFails(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir())
	numbers := []int{1, 2, 3, 4, 5}
	for _, n := range numbers {
		p.add(t, n)
	}
	named := Named{Storage: p.Storage, Now: true}
	broken := errors.New("broken")
	one := func(bad ...int) map[int]error {
		results := make(map[int]error)
		guarded := named
		guarded.fault = func(batch []narinfo.PathHash) error {
			for _, n := range bad {
				if slices.Contains(batch, path(n).Hash) {
					return broken
				}
			}
			return nil
		}
		err := guarded.Do(t.Context(), hashes(numbers...), func(r storage.Removal) {
			for _, n := range numbers {
				if path(n).Hash == r.Hash {
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
		if bad := n == 2; p.has(t, n) != bad || errors.Is(results[n], broken) != bad {
			t.Errorf("item %d: %v", n, results[n])
		}
	}
	// When one after another fails, it is not for the items to blame.
	for _, n := range numbers {
		p.add(t, n)
	}
	results = one(1, 2, 3)
	for _, n := range numbers {
		if !p.has(t, n) || !errors.Is(results[n], broken) {
			t.Errorf("item %d: %v", n, results[n])
		}
	}
}

// TestLastBroken: the last items, whose files are missing, can be removed from a storage
// whose owner file is there.
func TestLastBroken(t *testing.T) {
	t.Parallel()
	for _, owned := range []bool{true, false} {
		p := open(t, t.TempDir())
		p.add(t, 1)
		files, err := directory.Open(filepath.Join(p.dir, "store"))
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
		if err := os.Remove(p.file(1)); err != nil {
			t.Fatal(err)
		}
		named := Named{Storage: storage.New(p.index, files, options), Now: true}
		removed := false
		err = named.Do(t.Context(), hashes(1), func(r storage.Removal) { removed = r.Err == nil })
		if removed != owned || (err == nil) != owned {
			t.Errorf("owned: %v, removed: %v, %v", owned, removed, err)
		}
	}
}

// TestNamesStorage: an empty storage gets its name from its owner, and from nobody else.
func TestNamesStorage(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir())
	files, err := directory.Open(filepath.Join(p.dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	defer files.Close()
	refused := storage.ErrNotOwner
	s := storage.New(p.index, files, storage.Options{MayWrite: func(context.Context) error { return refused }})
	r := New(s, Options{Limit: -1, MinimumFree: -1})
	for _, refused = range []error{storage.ErrNotOwner, nil} {
		if err := r.Round(t.Context()); err != nil {
			t.Fatal(err)
		}
		if name, err := s.StorageName(t.Context()); (err == nil) != (refused == nil) {
			t.Errorf("%v: the name is %q, %v", refused, name, err)
		}
	}
}

func TestBroken(t *testing.T) {
	t.Parallel()
	p := open(t, t.TempDir())
	p.add(t, 1, 1)
	p.add(t, 2, 1)
	p.add(t, 3, 1, 2)
	p.add(t, 4, 3)
	p.add(t, 5, 1)
	if _, err := p.WithdrawAll(t.Context(), hashes(5), nil); err != nil {
		t.Fatal(err)
	}
	check := func(what string) {
		t.Helper()
		for _, test := range []struct{ gone, want []int }{
			{[]int{1}, []int{2, 3}}, {[]int{1, 2}, []int{3}}, {[]int{1, 2, 3}, []int{4}}, {[]int{4}, nil}, {nil, nil}, {[]int{77}, nil},
		} {
			gone := make(map[narinfo.PathHash]struct{})
			for _, hash := range hashes(test.gone...) {
				gone[hash] = struct{}{}
			}
			some, count, err := Broken(t.Context(), p.index, gone, 10)
			slices.SortFunc(some, func(a, b narinfo.PathHash) int { return bytes.Compare(a[:], b[:]) })
			if err != nil || count != len(test.want) || !slices.Equal(some, hashes(test.want...)) {
				t.Errorf("%s: without %v: %v, %d, %v; want %v", what, test.gone, some, count, err, test.want)
			}
			if some, count, _ := Broken(t.Context(), p.index, gone, 1); len(some) > 1 || count != len(test.want) {
				t.Errorf("%s: at most one: %v, %d", what, some, count)
			}
		}
	}
	check("by reading all") // of few items, one is many
	err := p.index.Update(t.Context(), func(tx *index.Tx) error {
		for n := 1000; n < 1400; n++ {
			parsed, err := narinfo.Parse(fmt.Appendf(nil, "StorePath: %s\nNarHash: sha256:%s\nNarSize: 5\nReferences: \nURL: nar/%s\nCompression: none\n", path(n), strings.Repeat("0", 52), path(n).BaseName()))
			if err != nil {
				return err
			}
			if err := tx.Put(p.index.Prepare(parsed), nil); err != nil {
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

// TestWithdrawnErrors has a database that fails for a while.
func TestWithdrawnErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log testlog.Buffer
		begin := time.Now()
		var mu sync.Mutex
		var asked []time.Duration
		failing, freed := false, storage.Freed{}
		w := NewWithdrawn(storage.New(nil, nil, storage.Options{}), slog.New(slog.NewTextHandler(&log, nil)))
		w.keep = func(context.Context, time.Time) error { return nil }
		w.remove = func(_ context.Context, now time.Time) (storage.Freed, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, time.Since(begin))
			if now != time.Now() {
				t.Errorf("asked for %v at %v", now, time.Now())
			}
			if failing {
				return storage.Freed{}, errors.New("broken")
			}
			defer func() { freed = storage.Freed{} }()
			return freed, nil
		}
		// pass lets time go by, and returns when the storage was asked.
		pass := func(d time.Duration, fails bool, frees storage.Freed) []time.Duration {
			mu.Lock()
			failing, freed = fails, frees
			mu.Unlock()
			time.Sleep(d)
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			at := asked
			asked = nil
			return at
		}
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { w.Run(ctx); close(ended) }()
		if at := pass(2500*time.Millisecond, false, storage.Freed{}); len(at) != 3 || at[0] != 0 || at[2] != 2*time.Second || log.String() != "" {
			t.Errorf("asked at %v: %s", at, log.String())
		}
		// After one, two, four seconds and so on, at last each minute.
		if at := pass(10*time.Minute, true, storage.Freed{}); len(at) < 13 || len(at) > 17 || at[len(at)-1]-at[len(at)-2] != time.Minute {
			t.Errorf("asked at %v", at)
		}
		if n := strings.Count(log.String(), "level=ERROR"); n != 1 {
			t.Errorf("%d errors are logged: %s", n, log.String())
		}
		pass(2*time.Minute, false, storage.Freed{Items: 3, Size: 100})
		for _, line := range []string{"are removed again", "items=3 bytes=100"} {
			if !strings.Contains(log.String(), line) {
				t.Errorf("the log lacks %q: %s", line, log.String())
			}
		}
		if n := strings.Count(log.String(), "\n"); n != 3 {
			t.Errorf("%d lines are logged: %s", n, log.String())
		}
		stop()
		<-ended
	})
}

// TestWithdrawnRun removes what is due with a real storage, also what was
// withdrawn before it began, and leaves what came back.
func TestWithdrawnRun(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		p := open(t, dir)
		p.add(t, 1)
		p.add(t, 2)
		p.add(t, 3)
		all := map[string]index.Advertised{index.Narinfos: {TTL: 2*time.Minute - time.Second}}
		if err := p.index.Advertise(t.Context(), time.Now(), all); err != nil {
			t.Fatal(err)
		}
		if _, err := p.WithdrawAll(t.Context(), hashes(1, 2), nil); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		p.add(t, 2) // it is back
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		var log bytes.Buffer
		go func() {
			NewWithdrawn(p.Storage, slog.New(slog.NewTextHandler(&log, nil))).Run(ctx)
			close(ended)
		}()
		time.Sleep(time.Minute - time.Millisecond)
		synctest.Wait()
		if !p.has(t, 1) {
			t.Error("removed early")
		}
		time.Sleep(withdrawnInterval)
		synctest.Wait()
		if p.has(t, 1) || !p.has(t, 2) || !p.has(t, 3) {
			t.Error("not what was due is removed")
		}
		stop()
		<-ended
		if !strings.Contains(log.String(), "items=1 bytes=5") || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("the log: %s", log.String())
		}
	})
}
