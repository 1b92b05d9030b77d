package search

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
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
		if !s.State().Building && s.recent.items < s.threshold() {
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
	s.turns <- struct{}{}
	if _, err := s.Search(ended, query(t, "hello"), "", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("a search that waits for its turn: %v", err)
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

// TestDamage: any change of the file is noticed, and the index is built again.
func TestDamage(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, filepath.Join(dir, "index.db"))
	s := newTest(t, x)
	var items []model
	for n, name := range random(rand.New(rand.NewPCG(1, 1)), 40) {
		put(t, x, n, name)
		items = append(items, model{n, name})
	}
	follow(t, s)
	file := filepath.Join(dir, "index.db-search")
	intact, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	damages := map[string][]byte{"empty": {}, "longer": append(slices.Clone(intact), 0), "text": []byte("not an index\n")}
	for i := 0; i < len(intact); i += 1 + i/20 {
		changed := slices.Clone(intact)
		changed[i] ^= 1 << (i % 8)
		damages[fmt.Sprintf("byte %d", i)] = changed
		damages[fmt.Sprintf("first %d bytes", i)] = intact[:i]
	}
	for name, content := range damages {
		if err := os.WriteFile(file, content, 0o644); err != nil {
			t.Fatal(err)
		}
		s := loaded(t, x)
		if _, err := s.Search(t.Context(), query(t, "n"), "", 1000); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		s.damaged.Store(s.damaged.Load() || s.table != nil && !bytes.Equal(content, intact))
		follow(t, s)
		wantLikeNaive(t, s, items, "n", 100)
		wantLikeNaive(t, s, items, "1", 100)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	// While it is open.
	s = loaded(t, x)
	if s.table == nil {
		t.Fatal("the intact file is not used")
	}
	if err := os.Truncate(file, 10); err != nil {
		t.Fatal(err)
	}
	if result, err := s.Search(t.Context(), query(t, "n"), "", 10); err != nil || len(result.Items) > 0 || !s.State().Building {
		t.Errorf("a truncated file finds %+v, %v", result, err)
	}
	follow(t, s)
	wantLikeNaive(t, s, items, "n", 100)
}

// TestOtherDatabase: the file of another database, or of a newer copy of this one, is not used.
func TestOtherDatabase(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "index.db")
	names := random(rand.New(rand.NewPCG(1, 1)), 60)
	x, err := index.Open(t.Context(), path, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, x, 0, names[:25]...)
	backup := filepath.Join(dir, "backup.db")
	if err := x.Backup(t.Context(), backup, false, time.Now()); err != nil {
		t.Fatal(err)
	}
	put(t, x, 25, names[25:]...)
	s := newTest(t, x)
	follow(t, s)
	if err := s.write(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Close(), x.Close()); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+suffix, backup+suffix); err != nil {
		t.Fatal(err)
	}
	x = openIndex(t, backup)
	if s := loaded(t, x); s.table != nil {
		t.Error("the file of a newer copy is used")
	}
	// Other items get the same positions.
	put(t, x, 100, names...)
	s = loaded(t, x)
	if s.table != nil {
		t.Error("the file of another history is used")
	}
	follow(t, s)
	var items []model
	for n, name := range names[:25] {
		items = append(items, model{n, name})
	}
	for n, name := range names {
		items = append(items, model{100 + n, name})
	}
	wantLikeNaive(t, s, items, "n", 100)
	if err := x.NewInstance(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := loaded(t, x); s.table != nil {
		t.Error("the file of another database is used")
	}
}

// TestUnwritable: without a file, a search finds everything, until memory would hold too much.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, filepath.Join(dir, "index.db"))
	blocked := filepath.Join(dir, "index.db-search"+unfinished)
	if err := os.Mkdir(blocked, 0o755); err != nil {
		t.Fatal(err)
	}
	s := newTest(t, x)
	names := random(rand.New(rand.NewPCG(1, 1)), 50)
	put(t, x, 0, names...)
	for range 3 {
		if _, err := s.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if state := s.State(); state.Building || state.Indexed != 50 || state.Bytes != 0 {
		t.Errorf("without a file, the state is %+v", state)
	}
	put(t, x, 50, names...)
	put(t, x, 100, names...)
	for range 3 {
		if _, err := s.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if pause, err := s.step(t.Context()); err != nil || pause < retryInterval {
		t.Errorf("the pause is %v, %v", pause, err)
	}
	if state := s.State(); !state.Building {
		t.Errorf("with a full memory, the state is %+v", state)
	}
	if err := os.Remove(blocked); err != nil {
		t.Fatal(err)
	}
	s.refused = time.Time{}
	follow(t, s)
	if state := s.State(); state.Building || state.Indexed != 150 || state.Bytes == 0 {
		t.Errorf("after a retry, the state is %+v", state)
	}
}

// TestForeignFile: a file of something else with the name of the index stays.
func TestForeignFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	x := openIndex(t, filepath.Join(dir, "index.db"))
	const content = "SQLite format 3\x00"
	for _, name := range []string{"index.db-search", "index.db-search" + unfinished} {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		s := loaded(t, x)
		put(t, x, 0, random(rand.New(rand.NewPCG(1, 1)), 30)...)
		for range 3 {
			if _, err := s.step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		s.reset()
		if err := s.write(t.Context(), nil); err == nil {
			t.Errorf("%s is overwritten", name)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != content {
			t.Errorf("%s is %q, %v", name, got, err)
		}
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		var all []int
		for n := range 30 {
			all = append(all, n)
		}
		remove(t, x, all...)
	}
}

// TestLacking: a sweep notices an item with a row that was damaged when the index was built.
func TestLacking(t *testing.T) {
	t.Parallel()
	x := openIndex(t, filepath.Join(t.TempDir(), "index.db"))
	s := newTest(t, x)
	put(t, x, 0, "hello-1", "hello-2")
	follow(t, s)
	s.recent = recent{} // as if their names were not readable
	put(t, x, 2, "hello-3")
	follow(t, s)
	wantNames(t, s, "hello", "hello-3")
	if err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	follow(t, s)
	wantNames(t, s, "hello", "hello-3", "hello-2", "hello-1")
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
