package cached

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/compression"
	"nar-herder/internal/testfs"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
)

const published = "../../testdata/published"

// Items of the corpus.
const (
	greeting = "f7d5xvkf9s1mdnclid1kqndn30nim936"
	hello    = "g699dxrv55xnrdq6z90qwfmsgz16p3xg"
	entropy  = "d1srdrndhd8maaz82liwpkdkmbm5rfcm" // 3 MB that get no smaller
	gofmt    = "vwq3caqzrjacp658wz5wanfjk9z7q548" // over 1 MB
)

// bench is a cache with what it works on.
type bench struct {
	*Cache
	t       testing.TB
	index   *index.Index
	storage *storage.Storage
	store   string
	log     *lockedBuffer
}

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

func zstdIn(dir string) Type {
	return Type{Spec: compression.Spec{Name: "zstd", Level: 3}, Directory: filepath.Join(dir, "zstd"), MaxSize: -1}
}

// newBench has the corpus in a storage. change may change the options.
func newBench(t testing.TB, dir string, change func(*Options)) *bench {
	t.Helper()
	b := &bench{t: t, store: filepath.Join(dir, "store"), log: new(lockedBuffer)}
	if err := os.MkdirAll(b.store, 0o755); err != nil {
		t.Fatal(err)
	}
	store, err := directory.Open(b.store)
	if err != nil {
		t.Fatal(err)
	}
	if b.index, err = index.Open(context.Background(), filepath.Join(dir, "index.db"), index.Options{}); err != nil {
		t.Fatal(err)
	}
	b.storage = storage.New(b.index, store, storage.Options{})
	err = b.storage.Import(context.Background(), []string{published}, storage.ImportOptions{Keep: true}, func(i storage.Imported) {
		if i.Err != nil {
			t.Error(i.File, i.Err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	options := Options{Types: []Type{zstdIn(dir)}, MinUses: 3, Workers: 2, StorageDirectory: b.store}
	options.Log = slog.New(slog.NewTextHandler(b.log, nil))
	if change != nil {
		change(&options)
	}
	if b.Cache, err = New(b.index, b.storage, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(b.Cache.Close(), b.index.Close(), store.Close()); err != nil {
			t.Error(err)
		}
	})
	return b
}

// run runs the cache until the test ends.
func (b *bench) run() {
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Run(ctx, func(narinfo.PathHash) {})
	}()
	b.t.Cleanup(func() { stop(); <-ended })
}

func hashOf(t testing.TB, text string) narinfo.PathHash {
	t.Helper()
	hash, err := narinfo.ParsePathHash([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return hash
}

// use has an item asked for so often, and written down.
func (b *bench) use(hash string, times int) {
	b.t.Helper()
	for range times {
		b.Used(hashOf(b.t, hash), "")
	}
	b.flush(context.Background())
}

func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
	}
}

// names says whether the item's narinfo names a file of the type.
func (b *bench) names(hash, kind string) bool {
	b.t.Helper()
	text, _, err := b.Text(context.Background(), hashOf(b.t, hash))
	if err != nil {
		b.t.Fatal(err)
	}
	return bytes.Contains(text, []byte("Compression: "+kind+"\n"))
}

// total is the sum of a metric over its labels.
func (b *bench) total(name string) (sum float64) {
	b.t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(b.Cache)
	families, err := registry.Gather()
	if err != nil {
		b.t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			for _, m := range family.GetMetric() {
				sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
			}
			return sum
		}
	}
	b.t.Fatalf("no metric %s", name)
	return 0
}

// checkFile decodes the cached file of an item.
func (b *bench) checkFile(hash string) {
	b.t.Helper()
	row, err := b.index.Item(context.Background(), hashOf(b.t, hash))
	if err != nil {
		b.t.Fatal(err)
	}
	item, err := storage.NewItem(row)
	if err != nil {
		b.t.Fatal(err)
	}
	files, err := b.Files(context.Background(), item.Hash)
	if err != nil || len(files) == 0 {
		b.t.Fatalf("%d files, %v", len(files), err)
	}
	for _, file := range files {
		raw, info, err := b.Open(context.Background(), item, file, 0, -1)
		if err != nil {
			b.t.Fatal(err)
		}
		reader, err := compression.NewReader(file.Type, io.LimitReader(raw, info.Size))
		if err != nil {
			b.t.Fatal(err)
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, reader); err != nil {
			b.t.Error(err)
		}
		if narinfo.NarHash(sum.Sum(nil)) != item.Narinfo.NarHash {
			b.t.Errorf("%s: the file is another nar", file.Type)
		}
		reader.Close()
		raw.Close()
	}
}

// TestMade has a nar compressed at its third use, and not before.
func TestMade(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir(), nil)
	original, err := b.index.Text(t.Context(), hashOf(t, hello))
	if err != nil {
		t.Fatal(err)
	}
	b.run()
	b.use(hello, 2)
	if waiting, _ := b.queue.counts(); waiting != 0 || b.names(hello, "zstd") {
		t.Error("made before its time")
	}
	b.use(hello, 1)
	until(t, "the narinfo names it", func() bool { return b.names(hello, "zstd") })
	b.checkFile(hello)
	text, types, err := b.Text(t.Context(), hashOf(t, hello))
	if err != nil || len(types) != 1 || types[0] != "zstd" || !bytes.HasPrefix(text, original) {
		t.Errorf("%s: %v, %v", text, types, err)
	}
	if _, err := narinfo.Parse(text); err != nil {
		t.Error(err)
	}
	if used, limit := b.total("narherder_cached_bytes"), b.total("narherder_cached_bytes_limit"); used <= 0 || limit != -1 {
		t.Errorf("used %v, limit %v", used, limit)
	}
}

// countingSource counts how often it is opened.
type countingSource struct {
	Source
	mu     sync.Mutex
	opened map[narinfo.PathHash]int
}

func (s *countingSource) Open(ctx context.Context, item *storage.Item) (io.ReadCloser, string, error) {
	s.mu.Lock()
	s.opened[item.Hash]++
	s.mu.Unlock()
	return s.Source.Open(ctx, item)
}

// TestManyClients has fifty ask for one item at once: one job.
func TestManyClients(t *testing.T) {
	t.Parallel()
	source := &countingSource{opened: make(map[narinfo.PathHash]int)}
	b := newBench(t, t.TempDir(), func(o *Options) { o.Source, o.Workers = source, 8 })
	source.Source = storageSource{b.storage}
	b.run()
	var clients sync.WaitGroup
	for range 50 {
		clients.Go(func() {
			for range 10 {
				b.Used(hashOf(t, hello), "")
				b.flush(context.Background())
			}
		})
	}
	clients.Wait()
	until(t, "the narinfo names it", func() bool { return b.names(hello, "zstd") })
	b.use(hello, 10)
	source.mu.Lock()
	defer source.mu.Unlock()
	if n := source.opened[hashOf(t, hello)]; n != 1 {
		t.Errorf("%d jobs", n)
	}
	row, err := b.index.Popular(t.Context(), "gzip", 510, new(int64))
	if err != nil || len(row) != 1 {
		t.Errorf("not all of 510 uses are counted: %v, %v", row, err)
	}
}

// badSource spoils one item.
type badSource struct {
	Source
	hash  narinfo.PathHash
	spoil func([]byte) io.Reader
}

func (s *badSource) Open(ctx context.Context, item *storage.Item) (io.ReadCloser, string, error) {
	r, how, err := s.Source.Open(ctx, item)
	if err != nil || item.Hash != s.hash {
		return r, how, err
	}
	defer r.Close()
	all, err := io.ReadAll(r)
	if err != nil {
		return nil, "", err
	}
	if s.spoil == nil {
		return nil, "", os.ErrNotExist
	}
	return io.NopCloser(s.spoil(all)), how, nil
}

type failingReader struct{ err error }

func (r failingReader) Read([]byte) (int, error) { return 0, r.err }

// TestBadSource has one item's nar spoilt: it fails, is tried again later, and
// the rest goes on.
func TestBadSource(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func([]byte) io.Reader{
		"missing": nil,
		"empty":   func([]byte) io.Reader { return bytes.NewReader(nil) },
		"short":   func(b []byte) io.Reader { return bytes.NewReader(b[:len(b)/2]) },
		"another": func(b []byte) io.Reader { b[len(b)/2] ^= 0x40; return bytes.NewReader(b) },
		"vanishes": func(b []byte) io.Reader {
			return io.MultiReader(bytes.NewReader(b[:len(b)/2]), failingReader{errors.New("it vanished")})
		},
		"panics": func([]byte) io.Reader { return nil },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			source := &badSource{hash: hashOf(t, hello), spoil: spoil}
			b := newBench(t, dir, func(o *Options) { o.Source, o.Workers = source, 1 })
			source.Source = storageSource{b.storage}
			b.run()
			b.use(hello, 3)
			until(t, "it fails", func() bool { return b.total("narherder_cached_nars_failed_total") == 1 })
			b.use(greeting, 3)
			until(t, "the other is made", func() bool { return b.names(greeting, "zstd") })
			b.use(hello, 3)
			if b.names(hello, "zstd") || b.total("narherder_cached_nars_failing") != 1 || b.total("narherder_cached_nars_failed_total") != 1 {
				t.Errorf("after the failure: %v failing", b.total("narherder_cached_nars_failing"))
			}
			if log := b.log.String(); !strings.Contains(log, hello) || !strings.Contains(log, "again=") {
				t.Errorf("log: %s", log)
			}
			left, err := os.ReadDir(filepath.Join(dir, "zstd"))
			if err != nil || len(left) != 1 {
				t.Errorf("%v, %v", left, err)
			}
		})
	}
}

// TestDirectoryGone has the directory taken away under a running cache.
func TestDirectoryGone(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBench(t, dir, nil)
	b.run()
	b.use(greeting, 3)
	until(t, "the narinfo names it", func() bool { return b.names(greeting, "zstd") })
	if err := os.Rename(filepath.Join(dir, "zstd"), filepath.Join(dir, "away")); err != nil {
		t.Fatal(err)
	}
	b.use(hello, 3)
	until(t, "it fails", func() bool { return b.total("narherder_cached_nars_failed_total") == 1 })
}

// TestDiskFull has a real disk that gets full, below any limit.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	disk := testfs.Small(t, 1<<20)
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].Directory = disk })
	b.run()
	b.use(entropy, 3)
	until(t, "it fails", func() bool { return b.total("narherder_cached_nars_failed_total") == 1 })
	if log := b.log.String(); !strings.Contains(log, "no space left on device") {
		t.Errorf("log: %s", log)
	}
	b.use(greeting, 3)
	until(t, "the narinfo of a small one names it", func() bool { return b.names(greeting, "zstd") })
	b.checkFile(greeting)
	left, err := os.ReadDir(disk)
	if err != nil || len(left) != 1 || b.names(entropy, "zstd") {
		t.Errorf("%v, %v", left, err)
	}
	if used := b.total("narherder_cached_bytes"); used != 4096 {
		t.Errorf("%v bytes are counted", used)
	}
}

// TestReadOnly has a directory that can't be written: from the beginning, and
// from some time on.
func TestReadOnly(t *testing.T) {
	t.Parallel()
	disk := testfs.Small(t, 1<<20)
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].Directory = disk })
	b.run()
	b.use(greeting, 3)
	until(t, "the narinfo names it", func() bool { return b.names(greeting, "zstd") })
	testfs.Freeze(t, disk)
	b.use(hello, 3)
	until(t, "it fails", func() bool { return b.total("narherder_cached_nars_failed_total") == 1 })
	if log := b.log.String(); !strings.Contains(log, "read-only file system") {
		t.Errorf("log: %s", log)
	}
	b.checkFile(greeting)
	if b.names(hello, "zstd") || !b.names(greeting, "zstd") {
		t.Error("the wrong ones are named")
	}
	_, err := New(b.index, b.storage, Options{Types: []Type{{Spec: compression.Spec{Name: "zstd", Level: 3}, Directory: disk}}})
	if err == nil || !strings.Contains(err.Error(), disk) || !strings.Contains(err.Error(), "--cached-compression-directory=zstd=DIR") {
		t.Errorf("%v", err)
	}
}

// TestNoRoom has a limit that the nar would never fit.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	const limit = 600_000
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].MaxSize = limit })
	b.run()
	b.use(greeting, 3)
	until(t, "the narinfo names it", func() bool { return b.names(greeting, "zstd") })
	b.use(entropy, 3)
	until(t, "it fails", func() bool { return b.total("narherder_cached_nars_failed_total") == 1 })
	if used := b.total("narherder_cached_bytes"); used > limit {
		t.Errorf("%v bytes are used", used)
	}
	if !b.names(greeting, "zstd") {
		t.Error("a file made room for one that never fits")
	}
}

// TestMakesRoom has two nars of which the directory can have one: the one that
// was used less goes, but not before its grace is over.
func TestMakesRoom(t *testing.T) {
	t.Parallel()
	const limit = 3_600_000
	b := newBench(t, t.TempDir(), func(o *Options) { o.Types[0].MaxSize = limit })
	k := b.kinds["zstd"]
	if err := b.survey(t.Context(), k, true); err != nil {
		t.Fatal(err)
	}
	make1 := func(hash string) {
		b.do(t.Context(), task{hashOf(t, hash), k})
		if used := k.space.usage(); used > limit {
			t.Fatalf("%d bytes are used", used)
		}
	}
	make1(entropy)
	made := time.Now()
	time.Sleep(2 * time.Millisecond) // times are kept in milliseconds
	make1(gofmt)
	if b.names(entropy, "zstd") || b.names(gofmt, "zstd") {
		t.Fatal("no room was made, or too much")
	}
	if err := b.retire(t.Context(), k, made.Add(k.grace)); err != nil {
		t.Fatal(err)
	}
	b.checkFile(entropy)
	make1(gofmt)
	if b.names(gofmt, "zstd") {
		t.Fatal("it found room where there is none")
	}
	if err := b.retire(t.Context(), k, time.Now().Add(k.grace)); err != nil {
		t.Fatal(err)
	}
	make1(gofmt)
	if !b.names(gofmt, "zstd") {
		t.Fatalf("not made: %s", b.log.String())
	}
	b.checkFile(gofmt)
}

// TestRetired moves the clock: a file is withdrawn and deleted at the right
// moments.
func TestRetired(t *testing.T) {
	day := 24 * time.Hour
	duration := func(d time.Duration) *time.Duration { return &d }
	for _, test := range []struct {
		name                           string
		ttl, newTTL, typeTTL, typesNew *time.Duration
		grace                          time.Duration
	}{
		{name: "none", grace: 36 * time.Hour},
		{name: "ttl", ttl: duration(3 * day), grace: 3 * day},
		{name: "new-ttl lowered", ttl: duration(3 * day), newTTL: duration(day), grace: 3 * day},
		{name: "new-ttl raised", ttl: duration(day), newTTL: duration(3 * day), grace: 3 * day},
		{name: "new-ttl after none", newTTL: duration(day), grace: 36 * time.Hour},
		{name: "of the type", ttl: duration(3 * day), typeTTL: duration(5 * time.Hour), grace: 5 * time.Hour},
		{name: "of the type, lowered", ttl: duration(3 * day), typeTTL: duration(5 * time.Hour), typesNew: duration(time.Hour), grace: 5 * time.Hour},
		{name: "of the type, new", ttl: duration(3 * day), typesNew: duration(time.Hour), grace: 3 * day},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t, dir, func(o *Options) {
					o.TTL, o.NewTTL = test.ttl, test.newTTL
					o.Types[0].TTL, o.Types[0].NewTTL = test.typeTTL, test.typesNew
					o.Types[0].Unused = duration(7 * day)
					// The zstd library has channels that all tests share.
					o.Types[0].Name, o.Types[0].Level = "gzip", 6
				})
				k := b.kinds["gzip"]
				retire := func() {
					t.Helper()
					if err := b.retire(context.Background(), k, time.Now()); err != nil {
						t.Fatal(err)
					}
				}
				there := func() bool {
					files, err := os.ReadDir(k.Directory)
					if err != nil {
						t.Fatal(err)
					}
					return len(files) == 1
				}
				if err := b.survey(context.Background(), k, true); err != nil {
					t.Fatal(err)
				}
				b.do(context.Background(), task{hashOf(t, hello), k})
				time.Sleep(3 * day)
				b.Used(hashOf(t, hello), "gzip")
				b.flush(context.Background())
				time.Sleep(7 * day)
				retire()
				if !b.names(hello, "gzip") {
					t.Fatal("withdrawn too early")
				}
				time.Sleep(time.Millisecond)
				retire()
				if b.names(hello, "gzip") || !there() {
					t.Fatal("not withdrawn, or gone")
				}
				time.Sleep(test.grace - time.Millisecond)
				retire()
				if !there() {
					t.Fatal("deleted too early")
				}
				time.Sleep(time.Millisecond)
				retire()
				if there() {
					t.Fatal("not deleted")
				}
				if used := k.space.usage(); used != 0 {
					t.Errorf("%d bytes are counted", used)
				}
			})
		})
	}
}

// TestSurvey puts right what a crash has left.
func TestSurvey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b := newBench(t, dir, nil)
	k := b.kinds["zstd"]
	for _, hash := range []string{hello, greeting} {
		b.do(t.Context(), task{hashOf(t, hash), k})
	}
	stranger := filepath.Join(k.Directory, "00000000000000000000000000000000-nobody")
	half := filepath.Join(k.Directory, jobPrefix+"1")
	other := filepath.Join(k.Directory, "README")
	for _, name := range []string{stranger, half, other} {
		if err := os.WriteFile(name, []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	lost, err := filepath.Glob(filepath.Join(k.Directory, greeting+"-*"))
	if err != nil || len(lost) != 1 || os.Remove(lost[0]) != nil {
		t.Fatal(lost, err)
	}
	if err := b.survey(t.Context(), k, true); err != nil {
		t.Fatal(err)
	}
	if !b.names(hello, "zstd") || b.names(greeting, "zstd") {
		t.Error("the wrong ones are named")
	}
	for name, want := range map[string]bool{stranger: false, half: false, other: true} {
		if _, err := os.Stat(name); (err == nil) != want {
			t.Errorf("%s: %v", name, err)
		}
	}
	b.checkFile(hello)
}

// TestVanished has a file deleted by hand: it is not served, and forgotten.
func TestVanished(t *testing.T) {
	t.Parallel()
	b := newBench(t, t.TempDir(), nil)
	k := b.kinds["zstd"]
	b.do(t.Context(), task{hashOf(t, hello), k})
	row, err := b.index.Item(t.Context(), hashOf(t, hello))
	if err != nil {
		t.Fatal(err)
	}
	item, err := storage.NewItem(row)
	if err != nil {
		t.Fatal(err)
	}
	files, err := b.Files(t.Context(), item.Hash)
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	if err := os.Remove(filepath.Join(k.Directory, item.Narinfo.StorePath.BaseName())); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.Open(t.Context(), item, files[0], 0, -1); !errors.Is(err, storage.ErrNotStored) {
		t.Errorf("%v", err)
	}
	if b.names(hello, "zstd") {
		t.Error("the narinfo goes on naming it")
	}
}
