package cached

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/uses"
)

// TestMade: a nar is compressed at its third use, not before.
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
	text, types, _, err := b.Text(t.Context(), hashOf(t, hello))
	if err != nil || len(types) != 1 || types[0] != "zstd" || !bytes.HasPrefix(text, original) {
		t.Errorf("%s: %v, %v", text, types, err)
	}
	if _, err := narinfo.Parse(text); err != nil {
		t.Error(err)
	}
	if used := b.total("narherder_cached_bytes"); used <= 0 {
		t.Errorf("used %v", used)
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

// stoppedSource opens nothing until the gate is closed.
type stoppedSource struct {
	Source
	gate chan struct{}
}

func (s *stoppedSource) Open(ctx context.Context, item *storage.Item) (io.ReadCloser, string, error) {
	<-s.gate
	return s.Source.Open(ctx, item)
}

// TestMaking: the nars that are being made are listed, without those that wait.
func TestMaking(t *testing.T) {
	t.Parallel()
	source := &stoppedSource{gate: make(chan struct{})}
	b := newBench(t, t.TempDir(), func(o *Options) { o.Source = source })
	source.Source = storageSource{b.storage, nil}
	if making := b.Making(t.Context(), 10); making != nil {
		t.Errorf("before: %+v", making)
	}
	b.run()
	opened := sync.OnceFunc(func() { close(source.gate) })
	t.Cleanup(opened) // before the cache stops
	b.use(hello, 3)
	until(t, "the first is being made", func() bool { return len(b.Making(t.Context(), 10)) == 1 })
	b.use(entropy, 3)
	b.use(gofmt, 3)
	until(t, "another is being made", func() bool { return len(b.Making(t.Context(), 10)) == b.options.Workers })
	making := b.Making(t.Context(), 10)
	if first := making[0]; first.Path.Hash != hashOf(t, hello) || first.Type != "zstd" || first.Since.After(making[1].Since) || first.Since.IsZero() {
		t.Errorf("%+v", making)
	}
	if making := b.Making(t.Context(), 1); len(making) != 1 || making[0].Path.Hash != hashOf(t, hello) {
		t.Errorf("the first: %+v", making)
	}
	opened()
	for _, hash := range []string{hello, entropy, gofmt} {
		until(t, hash+" is made", func() bool { return b.names(hash, "zstd") })
	}
	until(t, "none is listed", func() bool { return b.Making(t.Context(), 10) == nil })
}

// TestManyClients: fifty requests for one item at once cause one job.
func TestManyClients(t *testing.T) {
	t.Parallel()
	source := &countingSource{opened: make(map[narinfo.PathHash]int)}
	b := newBench(t, t.TempDir(), func(o *Options) { o.Source, o.Workers = source, 8 })
	source.Source = storageSource{b.storage, nil}
	b.run()
	var clients sync.WaitGroup
	for range 50 {
		clients.Go(func() {
			for range 10 {
				b.options.Uses.Used(hashOf(t, hello), "")
				b.options.Uses.Flush(context.Background())
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

// badSource damages one item's nar.
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

// TestBadSource: an item with a damaged nar fails, is retried later, and the others continue.
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
			source.Source = storageSource{b.storage, nil}
			b.run()
			b.fails(hello)
			b.makes(greeting)
			b.use(hello, 3)
			if b.names(hello, "zstd") || b.total("narherder_cached_nars_failing") != 1 || b.total("narherder_cached_nars_failed_total") != 1 {
				t.Errorf("after the failure: %v failing", b.total("narherder_cached_nars_failing"))
			}
			if log := b.log.String(); !strings.Contains(log, hello) || !strings.Contains(log, "retry_in=") {
				t.Errorf("log: %s", log)
			}
			left, err := os.ReadDir(filepath.Join(dir, "zstd"))
			if err != nil || len(left) != 1 {
				t.Errorf("%v, %v", left, err)
			}
		})
	}
}

// TestOverlapUnknown: if it is unknown whether two directories overlap, the cache deletes
// nothing.
func TestOverlapUnknown(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	loop := filepath.Join(dir, "loop")
	if err := os.Symlink(loop, loop); err != nil {
		t.Fatal(err)
	}
	x, err := index.Open(t.Context(), filepath.Join(dir, "index.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	s := storage.New(x, nil, storage.Options{})
	options := Options{Types: []Type{zstdIn(dir)}, StorageDirectory: loop, Uses: uses.New(x, nil)}
	if c, err := New(s, options); err == nil || !strings.Contains(err.Error(), "too many links") {
		t.Errorf("%v", err)
		if err == nil {
			c.Close()
		}
	}
}
