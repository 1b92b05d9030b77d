package fetch

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/mirror/nars"
	"nar-herder/mirror/nars/spool"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/upstream"
)

// path returns the path of the Nth item.
func path(n int) narinfo.StorePath {
	path, err := narinfo.ParseBaseName(fmt.Sprintf("%032d-item-%d", n, n))
	if err != nil {
		panic(err)
	}
	return path
}

// item is an item of a source.
type item struct {
	n, version int
	references []int
	// kinds are the compressions of its files, which are as long as the names of the kinds.
	kinds []string
	// unsized omits FileSize, and url replaces the URLs.
	unsized bool
	url     string
}

func (i item) text() string {
	base := path(i.n).BaseName()
	var references []string
	for _, n := range i.references {
		references = append(references, path(n).BaseName())
	}
	text := fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: 10\nReferences: %s\n", base,
		narinfo.NarHash(sha256.Sum256([]byte{byte(i.version)})), strings.Join(references, " "))
	for _, kind := range i.kinds {
		text += fmt.Sprintf("URL: %s\nCompression: %s\n", cmp.Or(i.url, "nar/"+kind+"/"+base), kind)
		if !i.unsized {
			text += fmt.Sprintf("FileSize: %d\n", len(kind))
		}
	}
	return text
}

// site is a storage with sources.
type site struct {
	*storage.Storage
	t *testing.T
	// items are those of the source, and answers what it says about others.
	items   map[narinfo.PathHash]item
	answers map[narinfo.PathHash]error
	maxAge  time.Duration
	from    *upstream.Upstream
	// before is called before a nar is stored, and its error returned; may be nil.
	before func(ctx context.Context, name string) error

	mu    sync.Mutex
	asked [][]narinfo.PathHash
	files []string // that were fetched
}

// memoryDir is a directory in memory, if possible: on a disk, most of the time is for
// flushing.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nar-herder-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func newSite(t *testing.T, items ...item) *site {
	t.Helper()
	bytes, err := directory.Open(memoryDir(t))
	if err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), filepath.Join(memoryDir(t), "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(x.Close(), bytes.Close()); err != nil {
			t.Error(err)
		}
	})
	set := upstream.New(upstream.Options{URLs: []*url.URL{{Scheme: "https", User: url.UserPassword("user", "secret"), Host: "upstream.example"}}})
	s := &site{Storage: storage.New(x, bytes, storage.Options{}), t: t, items: make(map[narinfo.PathHash]item), answers: make(map[narinfo.PathHash]error), maxAge: time.Hour, from: set.Upstreams()[0]}
	for _, i := range items {
		s.items[path(i.n).Hash] = i
	}
	return s
}

// Ask implements [Narinfos].
func (s *site) Ask(_ context.Context, hashes []narinfo.PathHash, _ []string, deliver func(narinfo.PathHash, upstream.Answer)) {
	s.mu.Lock()
	s.asked = append(s.asked, slices.Clone(hashes))
	s.mu.Unlock()
	var delivering sync.WaitGroup
	for _, hash := range hashes {
		delivering.Go(func() {
			if i, ok := s.items[hash]; ok {
				n, err := narinfo.Parse([]byte(i.text()))
				if err != nil {
					panic(err)
				}
				deliver(hash, upstream.Answer{Narinfo: n, Upstream: s.from, MaxAge: s.maxAge})
				return
			}
			err, ok := s.answers[hash]
			if !ok {
				err = storage.ErrNotFound
			}
			deliver(hash, upstream.Answer{Err: err, MaxAge: -1})
		})
	}
	delivering.Wait()
}

// Fetch implements [Nars]. Its nars are the names of their compressions, and not verified.
func (s *site) Fetch(ctx context.Context, item *storage.Item, n int) error {
	if s.before != nil {
		if err := s.before(ctx, item.FileName(n)); err != nil {
			return err
		}
	}
	s.mu.Lock()
	s.files = append(s.files, item.FileName(n))
	s.mu.Unlock()
	directory, err := s.Spool("")
	if err != nil {
		return err
	}
	file, err := os.CreateTemp(directory, "")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	defer file.Close()
	if _, err := file.WriteString(item.Narinfo.Files[n].Compression); err != nil {
		return err
	}
	return s.Receive(ctx, item, n, file)
}

// run fetches items and returns the results, sorted by path.
func (s *site) run(options Options, wanted ...int) (results []Result, err error) {
	s.t.Helper()
	s.asked, s.files = nil, nil
	options.Storage, options.Narinfos, options.Nars = s.Storage, s, s
	options.Report = func(r Result) { results = append(results, r) }
	var paths []narinfo.StorePath
	for _, n := range wanted {
		paths = append(paths, path(n))
	}
	err = Run(s.t.Context(), paths, options)
	slices.SortFunc(results, func(a, b Result) int { return strings.Compare(a.Path.String(), b.Path.String()) })
	return results, err
}

// wantRun runs with a description of the results.
func (s *site) wantRun(options Options, want string, wanted ...int) {
	s.t.Helper()
	results, err := s.run(options, wanted...)
	if err != nil {
		s.t.Errorf("run: %v", err)
	}
	if got := describe(results); got != want {
		s.t.Errorf("got  %s\nwant %s", got, want)
	}
}

func describe(results []Result) string {
	var all []string
	for _, r := range results {
		text := strings.TrimPrefix(r.Path.Name, "item-") + " known"
		if r.Err != nil {
			text = strings.TrimPrefix(r.Path.Name, "item-") + " " + r.Err.Error()
		} else if r.Fetched {
			text = strings.TrimPrefix(r.Path.Name, "item-") + fmt.Sprintf(" fetched %d", r.Bytes)
		}
		all = append(all, text)
	}
	return strings.Join(all, "; ")
}

func (s *site) row(n int) *index.Item {
	s.t.Helper()
	row, err := s.Index().Item(s.t.Context(), path(n).Hash)
	if err != nil {
		s.t.Fatalf("item %d: %v", n, err)
	}
	return row
}

// put writes a row by hand.
func (s *site) put(i item, change func(*index.Entry)) {
	s.t.Helper()
	n, err := storage.Admit([]byte(i.text()))
	if err != nil {
		s.t.Fatal(err)
	}
	entry := s.Index().Prepare(n)
	entry.AddedAt = time.Now()
	s.update(func(tx *index.Tx) error {
		if change != nil {
			change(entry)
		}
		if entry.Origin != 0 {
			if entry.Origin, err = tx.Origin(s.from.String()); err != nil {
				return err
			}
		}
		old, err := tx.Item(path(i.n).Hash)
		if errors.Is(err, storage.ErrNotFound) {
			old, err = nil, nil
		}
		if err != nil {
			return err
		}
		return tx.Put(entry, old)
	})
}

func (s *site) update(f func(*index.Tx) error) {
	s.t.Helper()
	if err := s.Index().Update(s.t.Context(), f); err != nil {
		s.t.Fatal(err)
	}
}

// TestClosure fetches a closure with a circle, in one question for each step away from the
// root; again, nothing is asked for.
func TestClosure(t *testing.T) {
	t.Parallel()
	kinds := []string{"lzip"}
	s := newSite(t, item{n: 1, references: []int{1, 2, 3}, kinds: kinds}, item{n: 2, references: []int{4, 5}, kinds: kinds},
		item{n: 3, references: []int{4}, kinds: kinds}, item{n: 4, references: []int{1}, kinds: kinds}, item{n: 6, kinds: kinds})
	expected := 0
	options := Options{Closure: true, Expect: func(n int) { expected = n }}
	s.wantRun(options, "1 fetched 4; 2 fetched 4; 3 fetched 4; 4 fetched 4; 5 no source has it", 1)
	if len(s.asked) != 3 || expected != 5 {
		t.Errorf("asked %v, expected %d", s.asked, expected)
	}
	for n := range 4 {
		row := s.row(n + 1)
		origins, err := s.Index().Origins(t.Context())
		if row.Stored != 1 || row.VerifiedAt.IsZero() || err != nil || origins[row.Origin] != "https://upstream.example" {
			t.Errorf("item %d: %+v, %v, %v", n+1, row, origins, err)
		}
		if in := time.Until(row.FreshUntil); in < 50*time.Minute || in > time.Hour {
			t.Errorf("item %d is fresh for %v", n+1, in)
		}
	}
	s.wantRun(options, "1 known; 2 known; 3 known; 4 known; 5 no source has it", 1)
	if len(s.asked) != 1 || len(s.asked[0]) != 1 || len(s.files) > 0 {
		t.Errorf("the second time, asked %v and fetched %v", s.asked, s.files)
	}
	s.wantRun(Options{}, "1 known; 6 fetched 4", 6, 1, 6)
}

// TestNoMaxAge: a narinfo without a max-age is fresh for no time.
func TestNoMaxAge(t *testing.T) {
	t.Parallel()
	s := newSite(t, item{n: 1, kinds: []string{"zstd"}})
	s.maxAge = -1
	s.wantRun(Options{}, "1 fetched 4", 1)
	if row := s.row(1); time.Until(row.FreshUntil) > 0 || row.FreshUntil.IsZero() {
		t.Errorf("fresh until %v", row.FreshUntil)
	}
}

// TestMany: a large list is asked for in parts, and narinfos don't wait for nars.
func TestMany(t *testing.T) {
	t.Parallel()
	const count = 210
	var items []item
	var wanted []int
	for n := range count {
		items = append(items, item{n: n, kinds: []string{"lzip"}})
		wanted = append(wanted, n)
	}
	s := newSite(t, items...)
	begin := make(chan struct{})
	var once sync.Once
	s.before = func(context.Context, string) error {
		select {
		case <-begin:
		case <-time.After(time.Minute):
			return errors.New("the second question waits for the nars of the first")
		}
		return storage.ErrNotStored // storing them takes long
	}
	results, err := s.runWatched(Options{chunk: 100}, func(asked int) {
		if asked == 2 {
			once.Do(func() { close(begin) })
		}
	}, wanted...)
	if err != nil || len(results) != count || len(s.asked) != 3 || len(s.asked[0]) != 100 {
		t.Errorf("%d results, %d questions, %v", len(results), len(s.asked), err)
	}
	for _, r := range results {
		if !errors.Is(r.Err, errNoNar) {
			t.Fatalf("%s: %v", r.Path, r.Err)
		}
	}
}

// runWatched is run that calls a function with the number of each question.
func (s *site) runWatched(options Options, watch func(asked int), wanted ...int) ([]Result, error) {
	w := &watched{site: s, watch: watch}
	var results []Result
	options.Storage, options.Narinfos, options.Nars = s.Storage, w, s
	options.Report = func(r Result) { results = append(results, r) }
	var paths []narinfo.StorePath
	for _, n := range wanted {
		paths = append(paths, path(n))
	}
	return results, Run(s.t.Context(), paths, options)
}

type watched struct {
	*site
	watch func(asked int)
}

func (w *watched) Ask(ctx context.Context, hashes []narinfo.PathHash, via []string, deliver func(narinfo.PathHash, upstream.Answer)) {
	w.site.Ask(ctx, hashes, via, deliver)
	w.watch(len(w.asked))
}

// TestChoice: the smallest file is fetched, and another one if that can't be had.
func TestChoice(t *testing.T) {
	t.Parallel()
	kinds := []string{"gzip-9", "zstd", "lzip+"}
	s := newSite(t)
	n := 0
	for what, test := range map[string]struct {
		item   item
		errors map[string]error
		stored uint64
		want   string
	}{
		"smallest":           {item{kinds: kinds}, nil, 0b010, "fetched 4"},
		"without sizes":      {item{kinds: kinds, unsized: true}, nil, 0b001, "fetched 0"},
		"dropped there":      {item{kinds: kinds}, map[string]error{"zstd": storage.ErrNotStored}, 0b100, "fetched 5"},
		"wrong there":        {item{kinds: kinds}, map[string]error{"zstd": narcheck.ErrWrongNar, "lzip+": storage.ErrNotStored}, 0b001, "fetched 6"},
		"unreadable":         {item{kinds: kinds}, map[string]error{"zstd": narcheck.ErrUnreadable}, 0b100, "fetched 5"},
		"all dropped":        {item{kinds: kinds[:2]}, map[string]error{"zstd": storage.ErrNotStored, "gzip-9": storage.ErrNotStored}, 0, "no source has its nar"},
		"stored elsewhere":   {item{kinds: kinds[:1], url: "https://cdn.example/nar"}, nil, 0, `it names no file that could be in a storage: URL "https://cdn.example/nar" has a scheme, and it has no other`},
		"another item's":     {item{kinds: kinds[:1], url: "nar/gzip/" + path(0).BaseName()}, nil, 0, `its nar "nar/gzip/00000000000000000000000000000000-item-0" is named after another item: it must be `},
		"the source is down": {item{kinds: kinds}, map[string]error{"zstd": errors.New("it is down")}, 0, "it is down"},
	} {
		n++
		test.item.n = n
		s.items[path(n).Hash] = test.item
		s.before = func(_ context.Context, name string) error { return test.errors[strings.Split(name, "/")[1]] }
		results, err := s.run(Options{}, n)
		if got := describe(results); !strings.HasPrefix(got, fmt.Sprintf("%d %s", n, test.want)) || err != nil {
			t.Errorf("%s: %s, %v", what, got, err)
		}
		row, err := s.Index().Item(t.Context(), path(n).Hash)
		if test.stored == 0 {
			if !errors.Is(err, storage.ErrNotFound) {
				t.Errorf("%s: the row: %v", what, err)
			}
		} else if err != nil || row.Stored != test.stored {
			t.Errorf("%s: %+v, %v", what, row, err)
		}
	}
}

// TestKnownRows: what rows become that were there before.
func TestKnownRows(t *testing.T) {
	t.Parallel()
	lzip := []string{"lzip"}
	s := newSite(t)
	n := 0
	future, past := time.Now().Add(time.Hour), time.Now().Add(-time.Hour)
	withdraw := func() {
		s.update(func(tx *index.Tx) error {
			_, err := tx.Withdraw(path(n).Hash, time.Now())
			return err
		})
	}
	for what, test := range map[string]struct {
		before func()
		asked  bool
		want   string
		origin bool // of the row
		kinds  []string
	}{
		"mirrored, without its nar": {func() {
			s.put(item{n: n, kinds: lzip}, func(e *index.Entry) { e.Mirrored = true })
		}, false, "fetched 4", false, lzip},
		"fresh": {func() {
			s.put(item{n: n, kinds: lzip}, func(e *index.Entry) { e.Origin, e.FreshUntil = 1, future })
		}, false, "fetched 4", true, lzip},
		"stale": {func() {
			s.put(item{n: n, kinds: lzip}, func(e *index.Entry) { e.Origin, e.FreshUntil = 1, past })
		}, true, "fetched 4", true, lzip},
		"stale, replaced there": {func() {
			s.put(item{n: n, version: 7, kinds: []string{"zstd"}}, func(e *index.Entry) { e.Origin, e.FreshUntil = 1, past })
		}, true, "fetched 4", true, lzip},
		"stale, in another compression there": {func() {
			s.put(item{n: n, kinds: []string{"zstd"}}, func(e *index.Entry) { e.Origin, e.FreshUntil = 1, past })
		}, true, "fetched 4", true, lzip},
		"withdrawn": {func() {
			s.put(item{n: n, kinds: lzip}, nil)
			withdraw()
		}, true, "fetched 4", true, lzip},
		"withdrawn, of another nar": {func() {
			s.put(item{n: n, version: 7, kinds: []string{"zstd"}}, nil)
			withdraw()
		}, true, "another nar of this item is withdrawn: try again when it has been removed", false, nil},
		"imported meanwhile": {func() {
			s.before = func(context.Context, string) error {
				s.put(item{n: n, kinds: lzip}, nil)
				return nil
			}
		}, true, "fetched 4", false, lzip},
		"another imported meanwhile": {func() {
			s.before = func(context.Context, string) error {
				s.put(item{n: n, version: 7, kinds: []string{"zstd"}}, nil)
				return nil
			}
		}, true, "another nar of this item is being served from here, and stays", false, []string{"zstd"}},
	} {
		n++
		s.items[path(n).Hash], s.before = item{n: n, kinds: lzip}, nil
		test.before()
		results, err := s.run(Options{Tags: []index.Tag{{Key: "a", Value: "b"}}, Pin: true}, n)
		if got := describe(results); got != fmt.Sprintf("%d %s", n, test.want) || err != nil || len(s.asked) > 0 != test.asked {
			t.Errorf("%s: %s, %v, asked %v", what, got, err, s.asked)
		}
		if test.kinds == nil {
			continue
		}
		row := s.row(n)
		info, err := narinfo.Parse(row.Text)
		if err != nil {
			t.Fatal(err)
		}
		fetched := strings.Contains(test.want, "fetched")
		if row.Origin != 0 != test.origin || info.Files[0].Compression != test.kinds[0] || !row.WithdrawnAt.IsZero() || fetched != (row.Stored != 0) {
			t.Errorf("%s: %+v", what, row)
		}
		pins, err := s.Index().Pins(t.Context())
		if err != nil || fetched != slices.ContainsFunc(pins, func(p index.Pin) bool { return p.Hash == path(n).Hash }) || fetched != results[0].Pinned {
			t.Errorf("%s: pins %v, %v, %+v", what, pins, err, results)
		}
		s.wantTagged(what, fetched, n)
	}
}

// TestUsedWhenFetched: a nar that was fetched ahead is not the next to be evicted because its item
// has been known for long.
func TestUsedWhenFetched(t *testing.T) {
	t.Parallel()
	lzip := []string{"lzip"}
	s := newSite(t, item{n: 2, kinds: lzip})
	begun := time.Now().Truncate(time.Millisecond)
	for n, until := range map[int]time.Time{1: begun.Add(time.Hour), 2: begun.Add(-time.Hour)} {
		s.put(item{n: n, kinds: lzip}, func(e *index.Entry) {
			e.Origin, e.FreshUntil, e.AddedAt = 1, until, begun.AddDate(-1, 0, 0)
		})
	}
	s.wantRun(Options{}, "1 fetched 4; 2 fetched 4", 1, 2)
	for n := 1; n <= 2; n++ {
		err := s.Index().View(t.Context(), func(tx *index.Tx) error {
			used, err := tx.LastUsed(path(n).Hash)
			if used.Before(begun) {
				t.Errorf("item %d was last used at %v", n, used)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestOtherCompression: the file that only the former narinfo of a withdrawn item names is
// deleted.
func TestOtherCompression(t *testing.T) {
	t.Parallel()
	s := newSite(t, item{n: 1, kinds: []string{"zstd"}})
	s.wantRun(Options{}, "1 fetched 4", 1)
	s.update(func(tx *index.Tx) error {
		_, err := tx.Withdraw(path(1).Hash, time.Now())
		return err
	})
	s.items[path(1).Hash] = item{n: 1, kinds: []string{"lzip"}}
	s.wantRun(Options{}, "1 fetched 4", 1)
	for kind, want := range map[string]error{"lzip": nil, "zstd": fs.ErrNotExist} {
		if _, err := s.NarStore().Stat(t.Context(), "nar/"+kind+"/"+path(1).BaseName()); !errors.Is(err, want) {
			t.Errorf("%s: %v", kind, err)
		}
	}
	if names, err := s.Index().PendingDeletes(t.Context(), "", 10); err != nil || len(names) > 0 {
		t.Errorf("pending: %q, %v", names, err)
	}
}

func (s *site) wantTagged(what string, tagged bool, n int) {
	s.t.Helper()
	count := 0
	for row, err := range s.Index().Items(s.t.Context(), index.Tag{Key: "a", Value: "b"}) {
		if err != nil {
			s.t.Fatal(err)
		}
		if row.Hash == path(n).Hash {
			count++
		}
	}
	if tagged != (count == 1) {
		s.t.Errorf("%s: item %d is tagged: %v", what, n, count)
	}
}

// TestStoredMeanwhile: another process stores the nar, and the item is tagged and pinned.
func TestStoredMeanwhile(t *testing.T) {
	t.Parallel()
	s := newSite(t, item{n: 1, kinds: []string{"lzip"}})
	tries := 0
	other := storedBy{s, func(ctx context.Context, i *storage.Item) error {
		if tries++; tries == 1 {
			return fmt.Errorf("open the spool: %w", spool.ErrInUse)
		}
		s.put(item{n: 1, kinds: []string{"lzip"}}, func(e *index.Entry) { e.Stored = 1 })
		return nil
	}}
	var results []Result
	err := Run(t.Context(), []narinfo.StorePath{{Hash: path(1).Hash}}, Options{Storage: s.Storage, Narinfos: s, Nars: other, inUsePause: time.Microsecond,
		Tags: []index.Tag{{Key: "a", Value: "b"}}, Pin: true, Report: func(r Result) { results = append(results, r) }})
	if got := describe(results); err != nil || got != "1 known" || tries != 2 {
		t.Errorf("%s, %v, %d tries", got, err, tries)
	}
	s.wantTagged("stored meanwhile", true, 1)
	if row := s.row(1); row.Origin != 0 || row.Stored != 1 {
		t.Errorf("%+v", row)
	}
	// The tag and the pin of a stored item.
	s.wantRun(Options{Tags: []index.Tag{{Key: "c", Value: "d"}}}, "1 known", 1)
	err = s.Index().View(t.Context(), func(tx *index.Tx) error {
		tags, err := tx.Tags(path(1).Hash)
		if len(tags) != 2 {
			t.Errorf("tags %v", tags)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

type storedBy struct {
	*site
	fetch func(context.Context, *storage.Item) error
}

func (o storedBy) Fetch(ctx context.Context, item *storage.Item, _ int) error {
	return o.fetch(ctx, item)
}

// TestEnds: what ends a run before all items were tried.
func TestEnds(t *testing.T) {
	t.Parallel()
	var items []item
	var wanted []int
	for n := range 100 {
		items = append(items, item{n: n, kinds: []string{"lzip"}})
		wanted = append(wanted, n)
	}
	s := newSite(t, items...)
	t.Run("no room", func(t *testing.T) {
		full := fmt.Errorf("%w: the disk is full", nars.ErrFull)
		s.before = func(context.Context, string) error { return full }
		results, err := s.run(Options{}, wanted...)
		if !errors.Is(err, nars.ErrFull) || len(results) > 0 {
			t.Errorf("%s, %v", describe(results), err)
		}
	})
	t.Run("the sources fail", func(t *testing.T) {
		s.before = func(context.Context, string) error { return errors.New("connection refused") }
		results, err := s.run(Options{}, wanted...)
		if err == nil || err.Error() != "20 failures in a row, the last: connection refused" || len(results) < maxInRow || len(results) > maxInRow+downloads {
			t.Errorf("%d results, %v", len(results), err)
		}
	})
	t.Run("single items fail", func(t *testing.T) {
		var mu sync.Mutex
		count := 0
		s.before = func(context.Context, string) error {
			mu.Lock()
			defer mu.Unlock()
			count++
			return []error{errors.New("it answers 500"), narcheck.ErrWrongNar, storage.ErrNotStored}[count%3]
		}
		if results, err := s.run(Options{}, wanted...); err != nil || len(results) != 100 {
			t.Errorf("%d results, %v", len(results), err)
		}
	})
	t.Run("interrupted", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		s.before = func(ctx context.Context, _ string) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}
		var paths []narinfo.StorePath
		for _, n := range wanted {
			paths = append(paths, path(n))
		}
		err := Run(ctx, paths, Options{Storage: s.Storage, Narinfos: s, Nars: s, Report: func(r Result) { t.Errorf("%+v", r) }})
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	})
	t.Run("the sources can't be asked", func(t *testing.T) {
		clear(s.items)
		for n := range 100 {
			s.answers[path(n).Hash] = fmt.Errorf("%w: connection refused", upstream.ErrUnknown)
		}
		results, err := s.run(Options{}, wanted...)
		if err == nil || !strings.HasPrefix(err.Error(), "20 failures in a row, the last: "+upstream.ErrUnknown.Error()) || len(results) != maxInRow {
			t.Errorf("%d results, %v", len(results), err)
		}
	})
}
