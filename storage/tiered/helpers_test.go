package tiered

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/testlog"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
)

// errDown is the error of an unreachable store.
var errDown = errors.New("the bucket is down")

// far is a directory that behaves like a bucket: times in seconds, and tags of the contents.
// It counts calls, and can be made to fail.
type far struct {
	*directory.Directory
	opens, stats, closes atomic.Int64

	mu sync.Mutex
	// down makes all calls fail.
	down bool
	// body wraps the reader of Open.
	body func(name string, offset int64, r io.ReadCloser) io.ReadCloser
	// before is called before Open, and after is called after it.
	before, after func(ctx context.Context, name string) error
}

func newFar(t testing.TB) *far {
	t.Helper()
	d, err := directory.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return &far{Directory: d}
}

func (f *far) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

func (f *far) fault() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.down {
		return errDown
	}
	return nil
}

// bucket makes an Info like a bucket's.
func bucket(info bytestore.Info, content []byte) bytestore.Info {
	sum := sha256.Sum256(content)
	info.Tag = `"` + hex.EncodeToString(sum[:16]) + `"`
	info.ModTime = info.ModTime.Truncate(time.Second).UTC()
	info.Usage = info.Size
	return info
}

func (f *far) Stat(ctx context.Context, name string) (bytestore.Info, error) {
	f.stats.Add(1)
	if err := f.fault(); err != nil {
		return bytestore.Info{}, err
	}
	r, info, err := f.Directory.Open(ctx, name, 0, -1)
	if err != nil {
		return info, err
	}
	defer r.Close()
	content, err := io.ReadAll(r)
	return bucket(info, content), err
}

func (f *far) Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	f.opens.Add(1)
	f.mu.Lock()
	before, after, body := f.before, f.after, f.body
	f.mu.Unlock()
	if err := f.fault(); err != nil {
		return nil, bytestore.Info{}, err
	}
	if before != nil {
		if err := before(ctx, name); err != nil {
			return nil, bytestore.Info{}, err
		}
	}
	r, info, err := f.Directory.Open(ctx, name, 0, -1)
	if err != nil {
		return nil, info, err
	}
	content, err := io.ReadAll(r)
	r.Close()
	if err != nil {
		return nil, info, err
	}
	if after != nil {
		if err := after(ctx, name); err != nil {
			return nil, bytestore.Info{}, err
		}
	}
	part := content[min(offset, int64(len(content))):]
	if length >= 0 {
		part = part[:min(length, int64(len(part)))]
	}
	var reader io.ReadCloser = &farBody{Reader: bytes.NewReader(part), far: f, ctx: ctx}
	if body != nil {
		reader = body(name, offset, reader)
	}
	return reader, bucket(info, content), nil
}

// farBody ends with its context, like a body from the network.
type farBody struct {
	io.Reader
	far    *far
	ctx    context.Context
	closed sync.Once
}

func (b *farBody) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	return b.Reader.Read(p)
}

func (b *farBody) Close() error {
	b.closed.Do(func() { b.far.closes.Add(1) })
	return nil
}

// gated reads only as many bytes as are released.
type gated struct {
	io.ReadCloser
	ctx context.Context
	let <-chan int
}

func (g *gated) Read(p []byte) (int, error) {
	select {
	case n, ok := <-g.let:
		if ok {
			return io.ReadFull(g.ReadCloser, p[:min(n, len(p))])
		}
		return g.ReadCloser.Read(p)
	case <-g.ctx.Done():
		return 0, g.ctx.Err()
	}
}

// breaking fails after some bytes.
type breaking struct {
	io.ReadCloser
	left int
	err  error
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left == 0 {
		return 0, b.err
	}
	n, err := b.ReadCloser.Read(p[:min(b.left, len(p))])
	b.left -= n
	return n, err
}

// clock is a clock that tests set.
type clock struct{ nanos atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.nanos.Store(time.Now().UnixNano())
	return c
}

func (c *clock) now() time.Time       { return time.Unix(0, c.nanos.Load()) }
func (c *clock) pass(d time.Duration) { c.nanos.Add(int64(d)) }

// logs are the logged lines.
type logs struct{ testlog.Buffer }

func (l *logs) count(text string) int { return strings.Count(l.String(), text) }

func (l *logs) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// open opens a cache and waits until it is ready.
func open(t testing.TB, behind bytestore.Store, options Options) *Tiered {
	t.Helper()
	cache, err := New(behind, options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cache.Close() })
	<-cache.scanned
	return cache
}

// closeNow closes a cache before the end of the test.
func closeNow(t testing.TB, cache *Tiered) {
	t.Helper()
	settled(t, cache)
	if err := cache.Close(); err != nil {
		t.Fatal(err)
	}
}

// settled waits until no fetch and no check is in progress.
func settled(t testing.TB, cache *Tiered) {
	t.Helper()
	until(t, "all fetches have ended", func() bool {
		cache.mu.Lock()
		defer cache.mu.Unlock()
		if cache.fills > 0 {
			return false
		}
		for _, e := range cache.entries {
			if e.users > 0 {
				return false
			}
		}
		return true
	})
}

// until waits for a condition.
func until(t testing.TB, what string, met func() bool) {
	t.Helper()
	pause := time.Millisecond
	for end := time.Now().Add(20 * time.Second); !met(); time.Sleep(pause) {
		if time.Now().After(end) {
			t.Fatalf("timeout waiting until %s", what)
		}
		pause = min(pause*5/4, 20*time.Millisecond)
	}
}

// put stores content in the remote store, bypassing the cache, with a time of its own.
func put(t testing.TB, f *far, name string, content []byte) {
	t.Helper()
	staged, err := f.Stage(t.Context(), name, bytes.NewReader(content), int64(len(content)))
	if err == nil {
		err = staged.Commit(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// read reads a part of a nar.
func read(ctx context.Context, s bytestore.Store, name string, offset, length int64) ([]byte, bytestore.Info, error) {
	r, info, err := s.Open(ctx, name, offset, length)
	if err != nil {
		return nil, info, err
	}
	defer r.Close()
	var from io.Reader = r
	if length >= 0 {
		from = io.LimitReader(r, length)
	}
	content, err := io.ReadAll(from)
	return content, info, err
}

// want reads the whole nar, and compares it and its Info with the remote store's.
func want(t testing.TB, cache *Tiered, name string, content []byte) {
	t.Helper()
	got, info, err := read(t.Context(), cache, name, 0, -1)
	if err != nil || !bytes.Equal(got, content) {
		t.Fatalf("%s: %d bytes, %v; want the right %d", name, len(got), err, len(content))
	}
	if f, ok := cache.Store.(*far); ok && f.fault() == nil {
		there, err := f.Stat(t.Context(), name)
		f.stats.Add(-1)
		if err != nil || info.Name != there.Name || !sameContent(info, there) || info.Usage != there.Usage || info.Temporary {
			t.Errorf("%s: %+v, but the store has %+v, %v", name, info, there, err)
		}
	}
}

// cached reads the whole nar, and waits until it is cached.
func cached(t testing.TB, cache *Tiered, name string, content []byte) {
	t.Helper()
	want(t, cache, name, content)
	settled(t, cache)
}

// onDisk returns the disk space of the files below a directory, by stat.
func onDisk(t testing.TB, dir string) (total int64, files []string) {
	t.Helper()
	seen := make(map[uint64]bool) // a file may be renamed during the walk
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		var stat unix.Stat_t
		if err != nil || entry.IsDir() || entry.Name() == "lock" {
			return nil // it was removed during the walk
		}
		if unix.Lstat(path, &stat) == nil && !seen[stat.Ino] {
			seen[stat.Ino] = true
			total += stat.Blocks * 512
			files = append(files, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total, files
}

// copies returns the files of copies in a cache's directory.
func copies(t testing.TB, dir string) (found []string) {
	t.Helper()
	_, files := onDisk(t, dir)
	for _, file := range files {
		if _, _, ok := parseFileName(filepath.Base(file)); ok {
			found = append(found, file)
		}
	}
	return found
}

// copyOf returns the file of a name's copy, or "".
func copyOf(cache *Tiered, name string) string {
	cache.mu.Lock()
	defer cache.mu.Unlock()
	e := cache.entries[keyOf(name)]
	if e == nil || !e.kept {
		return ""
	}
	if _, err := os.Lstat(cache.path(e)); err != nil {
		return ""
	}
	return cache.path(e)
}

func random(size int, seed byte) []byte {
	content := make([]byte, size)
	_, _ = rand.NewChaCha8([32]byte{seed}).Read(content)
	return content
}
