package search

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// few are limits that let a handful of items make a file of several blocks.
var few = limits{least: 20, most: 40, blockText: 60, blockPostings: 40}

func openIndex(t testing.TB, path string) *index.Index {
	t.Helper()
	x, err := index.Open(context.Background(), path, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

func newTest(t testing.TB, x *index.Index) *Index {
	t.Helper()
	s := New(x, slog.New(slog.NewTextHandler(t.Output(), nil)))
	s.limits = few
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// loaded returns the index after it has read the file.
func loaded(t testing.TB, x *index.Index) *Index {
	t.Helper()
	s := newTest(t, x)
	if err := s.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// follow reads all new items.
func follow(t testing.TB, s *Index) {
	t.Helper()
	for {
		if _, err := s.step(t.Context()); err != nil {
			t.Fatal(err)
		}
		// A file that is not recognized as ours any more is not replaced.
		if !s.State().Building && (s.recent.items < s.threshold() || !s.refused.IsZero()) {
			return
		}
	}
}

// testHash returns the hash of the Nth item.
func testHash(n int) (hash narinfo.PathHash) {
	random := rand.New(rand.NewPCG(uint64(n), 1))
	for i := range hash {
		hash[i] = byte(random.Uint32())
	}
	return hash
}

// put adds items with names, numbered from first on.
func put(t testing.TB, x *index.Index, first int, names ...string) {
	t.Helper()
	err := x.Update(context.Background(), func(tx *index.Tx) error {
		for i, name := range names {
			path := narinfo.StorePath{Hash: testHash(first + i), Name: name}
			n, err := narinfo.Parse(fmt.Appendf(nil, "StorePath: %s\nNarHash: sha256:%s\nNarSize: 1\nReferences: \nURL: nar/%s\nCompression: none\n", path, strings.Repeat("0", 52), path.BaseName()))
			if err != nil {
				return err
			}
			entry := x.Prepare(n)
			entry.AddedAt = time.Unix(1e9, 0)
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t testing.TB, x *index.Index, numbers ...int) {
	t.Helper()
	err := x.Update(context.Background(), func(tx *index.Tx) error {
		for _, n := range numbers {
			if err := tx.Remove(testHash(n), time.Unix(1e9, 0)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func query(t testing.TB, text string) Query {
	t.Helper()
	q, err := ParseQuery(text)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// search returns the names of all results, in pages of a limit.
func search(t testing.TB, s *Index, text string, limit int) (names []string) {
	t.Helper()
	for _, m := range matches(t, s, text, limit) {
		names = append(names, m.Narinfo.StorePath.Name)
	}
	return names
}

func matches(t testing.TB, s *Index, text string, limit int) (found []Match) {
	t.Helper()
	for after := ""; ; {
		result, err := s.Search(t.Context(), query(t, text), after, limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(result.Items) > limit {
			t.Fatalf("%d results, want at most %d", len(result.Items), limit)
		}
		found = append(found, result.Items...)
		if after = result.Next; after == "" {
			return found
		}
	}
}

func wantNames(t testing.TB, s *Index, text string, want ...string) {
	t.Helper()
	for _, limit := range []int{1, 2, 3, 100} {
		if got := search(t, s, text, limit); !slices.Equal(got, want) {
			t.Errorf("%q in pages of %d: %q, want %q", text, limit, got, want)
		}
	}
}

// TestSearch: what queries find, and in which order.
func TestSearch(t *testing.T) {
	t.Parallel()
	names := []string{
		"python-3.9.9", "python-3.10.7-doc", "python-3.10.7", "python-2.7.18", "python-numpy-1.21.6", "python-wrapper-3.10.7",
		"python-six-1.16.0", "bpython-0.24", "micropython-1.20.0", "Python-3.8.tar.xz", "gcc-11.3.0", "gcc-11.3.0-lib",
		"gcc-toolchain-11.3.0", "libgccjit-11.3.0", "hello-2.12.1", "hello-2.12", "r-a-1.0", "a", "module-import-compiled",
		"font-x=y?1.0", "xz-5.2.5", "c++-gtk-utils-2.2", "profile",
	}
	for range 30 {
		names = append(names, "profile")
	}
	for _, inFile := range []bool{false, true} {
		x := openIndex(t, filepath.Join(t.TempDir(), "index.db"))
		s := newTest(t, x)
		if !inFile {
			s.limits.least, s.limits.most = 1000, 1000
		}
		put(t, x, 0, names...)
		follow(t, s)
		if inFile != (s.State().Bytes > 0) {
			t.Fatalf("the state is %+v", s.State())
		}
		for text, want := range map[string][]string{
			"python": {
				"python-3.10.7", "python-3.10.7-doc", "python-3.9.9", "Python-3.8.tar.xz", "python-2.7.18",
				"python-six-1.16.0", "python-numpy-1.21.6", "python-wrapper-3.10.7", "bpython-0.24", "micropython-1.20.0",
			},
			"PYTHON 3.10":                {"python-3.10.7", "python-3.10.7-doc", "python-wrapper-3.10.7"},
			"3.10 python":                {"python-3.10.7", "python-3.10.7-doc", "python-wrapper-3.10.7"},
			"python@3.10":                {"python-3.10.7", "python-3.10.7-doc"},
			"python-3.10.7":              {"python-3.10.7", "python-3.10.7-doc"},
			"gcc lib":                    {"gcc-11.3.0-lib", "libgccjit-11.3.0"},
			"gcc lib li l c":             {"gcc-11.3.0-lib", "libgccjit-11.3.0"},
			"hello":                      {"hello-2.12.1", "hello-2.12"},
			"xz":                         {"xz-5.2.5", "Python-3.8.tar.xz"},
			"++":                         {"c++-gtk-utils-2.2"},
			"r-a":                        {"r-a-1.0"},
			"=y?":                        {"font-x=y?1.0"},
			"nothing":                    nil,
			"":                           nil,
			" \t\n":                      nil,
			"/gnu/store/":                nil,
			"'; DROP TABLE items;--":     nil,
			"%":                          nil,
			"_":                          nil,
			`"python"`:                   nil,
			"pyth*":                      nil,
			"python\x00":                 nil,
			"p\xffython":                 nil,
			"ﬀ K":                        nil,
			"hello ":                     {"hello-2.12.1", "hello-2.12"},
			strings.Repeat("hello ", 42): {"hello-2.12.1", "hello-2.12"},
			strings.Repeat("n", 256):     nil,
			testHash(14).String():        {"hello-2.12.1"},
			testHash(14).String()[:8]:    {"hello-2.12.1"},
			testHash(14).String()[:5]:    {"hello-2.12.1"},
			testHash(14).String()[:31]:   {"hello-2.12.1"},
			"/gnu/store/" + testHash(14).String()[:13]:           {"hello-2.12.1"},
			"/gnu/store/" + testHash(14).String() + "-x/bin/y":   {"hello-2.12.1"},
			"https://host/" + testHash(14).String() + ".narinfo": {"hello-2.12.1"},
			testHash(14).String()[:10] + "00000":                 nil,
			testHash(14).String() + "0":                          nil,
			testHash(1000).String():                              nil,
		} {
			wantNames(t, s, text, want...)
		}
		if e, repeated := search(t, s, "e", 7), search(t, s, strings.Repeat("e ", 128), 7); len(e) != 35 || !slices.Equal(e, repeated) {
			t.Errorf("a letter finds %q, and 128 of them %q", e, repeated)
		}
		found := matches(t, s, "profile", 4)
		for i := range found[1:] {
			if found[i].Position() <= found[i+1].Position() {
				t.Errorf("%d is before %d, want the newest first", found[i].Position(), found[i+1].Position())
			}
		}
		if len(found) != 31 {
			t.Errorf("%d items of a name, want 31", len(found))
		}
		result, err := s.Search(t.Context(), query(t, "python"), "", 3)
		if err != nil || result.Total != 10 || len(result.Items) != 3 || result.State.Building || result.State.Indexed != int64(len(names)) {
			t.Errorf("the first page is %+v, %v", result, err)
		}
	}
}

// TestBadQuery: a query and a position that clients made up.
func TestBadQuery(t *testing.T) {
	t.Parallel()
	if _, err := ParseQuery(strings.Repeat("a ", MaxQuery)); err == nil {
		t.Error("a long query is accepted")
	}
	x := openIndex(t, filepath.Join(t.TempDir(), "index.db"))
	s := newTest(t, x)
	put(t, x, 0, "hello-2.12", "hello-2.10")
	follow(t, s)
	for _, after := range []string{"x", ".", "1", "1.", ".hello", "-1.hello", "1.Hello", "99999999999999999999.a", "1." + strings.Repeat("a", 300), "\x00"} {
		if _, err := s.Search(t.Context(), query(t, "hello"), after, 1); !errors.Is(err, ErrCursor) {
			t.Errorf("%q: %v", after, err)
		}
	}
	for after, want := range map[string]int{
		"1.hello-2.12": 1, "2.hello-2.12": 2, "0.a": 0, "9223372036854775807.zzzz": 0, "5.hello-2.11": 1, "0.hello-2.10\x00'": 0,
	} {
		if result, err := s.Search(t.Context(), query(t, "hello"), after, 5); err != nil || len(result.Items) != want {
			t.Errorf("after %q: %d results, %v; want %d", after, len(result.Items), err, want)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Search(ended, query(t, "hello"), "", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a search without a client: %v", err)
	}
}

// random returns names that share words.
func random(r *rand.Rand, count int) (names []string) {
	parts := []string{"a", "b", "ab", "lib", "X", "python", "-", "-1", ".2", "-10", "0", "+", "_", "doc"}
	for range count {
		name := "n"
		for range 1 + r.IntN(4) {
			name += parts[r.IntN(len(parts))]
		}
		names = append(names, name)
	}
	return names
}

// model is an item of naive, a slice of all items in insertion order.
type model struct {
	number int
	name   string
}

// naive returns the numbers of the items that match a query, the newest of equal names first.
func naive(items []model, text string) (found []model) {
	q, err := ParseQuery(text)
	if err != nil || q.IsEmpty() {
		return nil
	}
	for _, item := range items {
		does := true
		for _, word := range strings.Fields(text) {
			word = strings.ReplaceAll(lower(strings.TrimPrefix(word, "/gnu/store/")), "@", "-")
			does = does && strings.Contains(lower(item.name), word)
		}
		hash := testHash(item.number).String()
		if q.exact {
			does = hash == q.hash.String()
		}
		if does || q.start != "" && strings.HasPrefix(hash, q.start) {
			found = append(found, item)
		}
	}
	slices.Reverse(found)
	slices.SortStableFunc(found, func(a, b model) int {
		class := func(m model) int {
			if class, does := q.matches([]byte(lower(m.name))); does {
				return class
			}
			return isHash
		}
		return cmp.Or(cmp.Compare(class(a), class(b)), compareNames([]byte(lower(a.name)), []byte(lower(b.name))))
	})
	return found
}

func wantLikeNaive(t testing.TB, s *Index, items []model, text string, limit int) {
	t.Helper()
	var got, want []string
	for _, m := range matches(t, s, text, limit) {
		got = append(got, m.Hash.String()+m.Narinfo.StorePath.Name)
	}
	for _, m := range naive(items, text) {
		want = append(want, testHash(m.number).String()+m.name)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("%q in pages of %d: %q, want %q", text, limit, got, want)
	}
}

// TestLikeNaive adds, removes and adds again, writes files, reopens and sweeps at random, and
// compares all results with those of a slice.
func TestLikeNaive(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		r := rand.New(rand.NewPCG(seed, 0))
		x := openIndex(t, filepath.Join(t.TempDir(), "index.db"))
		s := newTest(t, x)
		var items []model
		next := 0
		for range 40 {
			switch r.IntN(6) {
			case 0, 1:
				names := random(r, r.IntN(40))
				put(t, x, next, names...)
				for _, name := range names {
					items = append(items, model{next, name})
					next++
				}
			case 2: // Remove some, and add one of them again.
				for range min(len(items), 10) {
					i := r.IntN(len(items))
					item := items[i]
					remove(t, x, item.number)
					items = slices.Delete(items, i, i+1)
					if r.IntN(3) == 0 {
						put(t, x, item.number, item.name)
						items = append(items, item)
					}
				}
			case 3:
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = loaded(t, x)
			case 4:
				if err := s.sweep(t.Context()); err != nil {
					t.Fatal(err)
				}
			case 5:
				if err := s.write(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
			}
			follow(t, s)
			for _, text := range []string{"a", "python", "lib 1", "n-1", "n0", "x@1", "ab b a", "doc"} {
				wantLikeNaive(t, s, items, text, 1+r.IntN(20))
			}
			if len(items) > 0 {
				hash := testHash(items[r.IntN(len(items))].number).String()
				wantLikeNaive(t, s, items, hash[:5+r.IntN(28)], 3)
			}
			if s.State().Items != int64(len(items)) {
				t.Fatalf("the state is %+v, want %d items", s.State(), len(items))
			}
		}
		if err := s.sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s.State().Indexed != int64(len(items)) {
			t.Errorf("after a sweep, the state is %+v, want %d indexed", s.State(), len(items))
		}
	}
}

// TestRun searches while the index is built, and while items are added and removed.
func TestRun(t *testing.T) {
	t.Parallel()
	x := openIndex(t, filepath.Join(t.TempDir(), "index.db"))
	names := random(rand.New(rand.NewPCG(1, 1)), 300)
	put(t, x, 0, names...)
	s := newTest(t, x)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Run(ctx)
	}()
	for n, end := 300, time.Now().Add(time.Minute); ; n++ {
		if n < 340 {
			put(t, x, n, "late-1.0")
		}
		_ = search(t, s, "a", 10)
		got := search(t, s, "late", 10)
		if len(got) == 40 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d of 40 new items are found; the state is %+v", len(got), s.State())
		}
		runtime.Gosched()
	}
	stop()
	<-ended
	if state := s.State(); state.Building || state.Indexed != 340 {
		t.Errorf("the state is %+v", state)
	}
}
