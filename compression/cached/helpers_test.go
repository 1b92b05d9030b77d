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
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/compression"
	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/directory"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
	"nar-herder/storage/uses"
)

const published = "../../testdata/published"

// Items of the corpus.
const (
	greeting = "f7d5xvkf9s1mdnclid1kqndn30nim936"
	hello    = "g699dxrv55xnrdq6z90qwfmsgz16p3xg"
	entropy  = "d1srdrndhd8maaz82liwpkdkmbm5rfcm" // 3 MB that don't compress
	gofmt    = "vwq3caqzrjacp658wz5wanfjk9z7q548" // over 1 MB
)

// bench is a cache with its storage and uses.
type bench struct {
	*Cache
	t       testing.TB
	index   *index.Index
	storage *storage.Storage
	store   string
	log     *testlog.Buffer
}

func zstdIn(dir string) Type {
	return Type{Spec: compression.Spec{Name: "zstd", Level: 3}, Directory: filepath.Join(dir, "zstd"), MaxSize: -1}
}

// newBench makes a bench with the corpus in a storage. change may change the options.
func newBench(t testing.TB, dir string, change func(*Options)) *bench {
	t.Helper()
	b := &bench{t: t, store: filepath.Join(dir, "store"), log: new(testlog.Buffer)}
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
	err = importer.New(b.storage).Import(context.Background(), []string{published}, importer.Options{Keep: true}, func(i importer.Imported) {
		if i.Err != nil {
			t.Error(i.File, i.Err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	options := Options{Types: []Type{zstdIn(dir)}, MinUses: 3, Workers: 2, StorageDirectory: b.store}
	options.Log = slog.New(slog.NewTextHandler(b.log, nil))
	options.Uses = uses.New(b.index, options.Log)
	if change != nil {
		change(&options)
	}
	if err := b.index.Advertise(context.Background(), time.Now(), options.Advertised()); err != nil {
		t.Fatal(err)
	}
	if b.Cache, err = New(b.storage, options); err != nil {
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

// use requests an item so often, and flushes the uses.
func (b *bench) use(hash string, times int) {
	b.t.Helper()
	for range times {
		b.options.Uses.Used(hashOf(b.t, hash), "")
	}
	b.options.Uses.Flush(context.Background())
}

func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	pause := time.Millisecond
	for end := time.Now().Add(30 * time.Second); !condition(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for: %s", what)
		}
		pause = min(pause*5/4, 20*time.Millisecond)
	}
}

// makes requests an item often enough, and waits until its narinfo names the new file.
func (b *bench) makes(hash string) {
	b.t.Helper()
	b.use(hash, b.options.MinUses)
	until(b.t, "the narinfo names it", func() bool { return b.names(hash, "zstd") })
}

// fails requests an item often enough, and waits for the first failure.
func (b *bench) fails(hash string) {
	b.t.Helper()
	b.use(hash, b.options.MinUses)
	until(b.t, "it fails", func() bool { return b.total("narherder_cached_nars_failed_total") == 1 })
	b.rests()
}

// rests waits until jobs have logged their result and removed their temporary files, which
// they do after counting failures and publishing files.
func (b *bench) rests() {
	b.t.Helper()
	until(b.t, "no job runs", func() bool { return b.total("narherder_cached_nars_running") == 0 })
}

// names reports whether the item's narinfo names a file of the type.
func (b *bench) names(hash, kind string) bool {
	b.t.Helper()
	text, _, _, err := b.Text(context.Background(), hashOf(b.t, hash))
	if err != nil {
		b.t.Fatal(err)
	}
	return bytes.Contains(text, []byte("Compression: "+kind+"\n"))
}

// total returns the sum of a metric over its labels.
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
