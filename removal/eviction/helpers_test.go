package eviction

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nar-herder/internal/testlog"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/directory"
	"nar-herder/storage/index"
	"nar-herder/storage/uses"
)

// upstreamURL is the origin of the items, unless they have another.
const upstreamURL = "https://upstream.example"

// cache is a storage of items from upstreams.
type cache struct {
	*storage.Storage
	t     testing.TB
	dir   string
	index *index.Index
	uses  *uses.Counter
	log   *testlog.Buffer
	ahead atomic.Int64 // how far its clock is ahead
}

func newCache(t testing.TB) *cache { return openCache(t, memoryDir(t), memoryDir(t)) }

// memoryDir is a directory in memory, if possible.
func memoryDir(t testing.TB) string {
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

// openCache opens a cache with its storage and its database in two directories.
func openCache(t testing.TB, dir, database string) *cache {
	t.Helper()
	store, err := directory.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return openCacheWith(t, dir, database, store)
}

func openCacheWith(t testing.TB, dir, database string, store bytestore.Store) *cache {
	t.Helper()
	c := &cache{t: t, dir: dir, log: new(testlog.Buffer)}
	var err error
	if c.index, err = index.Open(context.Background(), filepath.Join(database, "index.db"), index.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.index.Close(); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Log(c.log)
		}
	})
	c.Storage = storage.New(c.index, store, storage.Options{Now: c.now})
	c.uses = uses.New(c.index, nil)
	return c
}

func (c *cache) now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

func (c *cache) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(c.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// evictor makes an evictor for the items from upstreamURL.
func (c *cache) evictor(options Options) *Evictor {
	options.IsUpstream = func(url string) bool { return url == upstreamURL }
	options.Uses, options.Log, options.Now = c.uses, c.logger(), c.now
	e := New(c.Storage, options)
	e.rest = 0
	return e
}

// nar is the nar of an item: incompressible bytes that depend on its number.
type nar struct {
	n    int
	size int64
}

func (n nar) base() string { return fmt.Sprintf("%032d-item", n.n) }

func (n nar) hash() narinfo.PathHash {
	path, err := narinfo.ParseBaseName(n.base())
	if err != nil {
		panic(err)
	}
	return path.Hash
}

func (n nar) reader() io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(n.n), byte(n.n >> 8), byte(n.n >> 16)}), n.size)
}

// text is the narinfo, with references to other items.
func (n nar) text(t testing.TB, references ...int) string {
	t.Helper()
	sum := sha256.New()
	if _, err := io.Copy(sum, n.reader()); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, reference := range references {
		names = append(names, nar{n: reference}.base())
	}
	return fmt.Sprintf("StorePath: /gnu/store/%s\nNarHash: %s\nNarSize: %d\nReferences: %s\nURL: nar/%[1]s\nCompression: none\nFileSize: %[3]d\n",
		n.base(), narinfo.NarHash(sum.Sum(nil)), n.size, strings.Join(names, " "))
}

// put puts items from an upstream, "" for none, that were added at a time.
func (c *cache) put(items []nar, url string, at time.Time, isStored bool, references ...int) {
	c.t.Helper()
	var entries []*index.Entry
	for _, item := range items {
		parsed, err := narinfo.Parse([]byte(item.text(c.t, references...)))
		if err != nil {
			c.t.Fatal(err)
		}
		entry := c.index.Prepare(parsed)
		entry.AddedAt = at
		if isStored {
			content, err := io.ReadAll(item.reader())
			name := filepath.Join(c.dir, "nar", item.base())
			if err := errors.Join(err, os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, content, 0o644)); err != nil {
				c.t.Fatal(err)
			}
			storage.MarkStored(entry, 0, item.size)
		}
		entries = append(entries, entry)
	}
	c.update(func(tx *index.Tx) (err error) {
		var origin int64
		if url != "" {
			if origin, err = tx.Origin(url); err != nil {
				return err
			}
		}
		for _, entry := range entries {
			entry.Origin = origin
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *cache) update(f func(tx *index.Tx) error) {
	c.t.Helper()
	if err := c.index.Update(context.Background(), f); err != nil {
		c.t.Fatal(err)
	}
}

// many returns items of a size.
func many(from, to int, size int64) (items []nar) {
	for n := from; n <= to; n++ {
		items = append(items, nar{n, size})
	}
	return items
}

// used counts a recorded use.
func (c *cache) used(n int, at time.Time) {
	c.t.Helper()
	c.update(func(tx *index.Tx) error {
		_, err := tx.CountUses([]index.Uses{{Hash: nar{n: n}.hash(), Count: 1, Last: at}}, 1000)
		return err
	})
}

// state returns for each item whether it is stored (s) or has only a row (r) or none (-); ! for
// a row that disagrees with the file.
func (c *cache) state(from, to int) string {
	c.t.Helper()
	var state strings.Builder
	for n := from; n <= to; n++ {
		_, fileErr := os.Stat(filepath.Join(c.dir, "nar", nar{n: n}.base()))
		item, err := c.Item(context.Background(), nar{n: n}.hash())
		switch {
		case err != nil && !errors.Is(err, storage.ErrNotFound):
			c.t.Fatal(err)
		case (err == nil && item.Stored != 0) != (fileErr == nil):
			state.WriteByte('!')
		case err != nil:
			state.WriteByte('-')
		case item.Stored == 0:
			state.WriteByte('r')
		default:
			state.WriteByte('s')
		}
	}
	return state.String()
}

func (c *cache) wantState(from, to int, want string) {
	c.t.Helper()
	if got := c.state(from, to); got != want {
		c.t.Errorf("%s, want %s", got, want)
	}
}

// wantConsistent asserts that index and bytes agree.
func (c *cache) wantConsistent() {
	c.t.Helper()
	for finding, err := range check.New(c.Storage).Compare(context.Background(), nil) {
		c.t.Errorf("check finds %s %s, %v", finding.Kind, finding.Name, err)
	}
}

// open opens the nar of an item.
func (c *cache) open(n int) (io.ReadCloser, error) {
	c.t.Helper()
	item, err := c.Item(context.Background(), nar{n: n}.hash())
	if err != nil {
		c.t.Fatal(err)
	}
	reader, _, err := c.OpenFile(context.Background(), item, 0, 0, -1)
	return reader, err
}

// source has all nars that it knows.
type source struct {
	sizes   map[string]int64 // by base name
	mu      sync.Mutex
	fetched int
}

func (s *source) OpenFile(_ context.Context, item *storage.Item, _ int, offset, length int64, _ []string) (io.ReadCloser, int64, error) {
	base := item.Narinfo.StorePath.BaseName()
	var n int
	if _, err := fmt.Sscanf(base, "%d-item", &n); err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	s.fetched++
	s.mu.Unlock()
	size := s.sizes[base]
	reader := nar{n, size}.reader()
	if _, err := io.CopyN(io.Discard, reader, offset); err != nil {
		return nil, 0, err
	}
	if length >= 0 {
		reader = io.LimitReader(reader, length)
	}
	return io.NopCloser(reader), size, nil
}

func (s *source) Resume(ctx context.Context, item *storage.Item, n int, _ io.ReaderAt, offset int64, via []string) (io.ReadCloser, int64, error) {
	return s.OpenFile(ctx, item, n, offset, -1, via)
}

func (s *source) Locate(context.Context, *storage.Item, int, []string) (string, [16]byte, error) {
	return "", [16]byte{}, storage.ErrNotStored
}

// isNar reports whether the content is the item's.
func (n nar) isNar(content []byte) bool {
	want, err := io.ReadAll(n.reader())
	return err == nil && bytes.Equal(content, want)
}
