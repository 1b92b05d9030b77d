package tiered

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/storage/bytestore"
)

// TestReplacedElsewhere: a replacement by another process with the same size and time is
// noticed after a minute; until then, the store isn't asked.
func TestReplacedElsewhere(t *testing.T) {
	t.Parallel()
	f, clock := newFar(t), newClock()
	before, after := random(10_000, 1), random(10_000, 2)
	put(t, f, name, before)
	dir := t.TempDir()
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30, Now: clock.now})
	cached(t, cache, name, before)
	put(t, f, name, after)
	clock.pass(fresh - time.Second)
	if got, _, err := read(t.Context(), cache, name, 0, -1); err != nil || !bytes.Equal(got, before) || f.stats.Load() != 0 {
		t.Errorf("within the minute: %v, asked %d times", err, f.stats.Load())
	}
	clock.pass(2 * time.Second)
	cached(t, cache, name, after)
	if n := f.stats.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if n := len(copies(t, dir)); n != 1 {
		t.Errorf("%d copies", n)
	}
	// Invalidate makes it noticed earlier.
	put(t, f, name, before)
	if err := cache.Flush(t.Context(), name); err != nil {
		t.Error(err)
	}
	cached(t, cache, name, before)
	clock.pass(fresh)
	opens, stats := f.opens.Load(), f.stats.Load()
	for range 10 {
		cached(t, cache, name, before)
	}
	if f.opens.Load() != opens || f.stats.Load() != stats+1 {
		t.Errorf("unchanged: read %d times, asked %d times", f.opens.Load()-opens, f.stats.Load()-stats)
	}
}

// TestRemovedElsewhere: a removal by another process is noticed after a minute.
func TestRemovedElsewhere(t *testing.T) {
	t.Parallel()
	f, clock := newFar(t), newClock()
	content := random(10_000, 3)
	put(t, f, name, content)
	dir := t.TempDir()
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30, Now: clock.now})
	cached(t, cache, name, content)
	r, _, err := cache.Open(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	clock.pass(fresh)
	if _, _, err := cache.Open(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Errorf("its reader: %v", err)
	}
	if cache.taken == 0 {
		t.Error("an open file isn't counted")
	}
	r.Close()
	if n := len(copies(t, dir)); n != 0 || cache.taken != 0 {
		t.Errorf("%d copies, %d bytes", n, cache.taken)
	}
}

// TestDown: copies are served while the store doesn't answer. That is logged once, and the
// store isn't asked for a while.
func TestDown(t *testing.T) {
	t.Parallel()
	f, clock, log := newFar(t), newClock(), new(logs)
	for i := range 5 {
		put(t, f, fmt.Sprint(i), random(10_000, byte(i)))
	}
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 30, Now: clock.now, Log: log.logger()})
	for i := range 4 {
		cached(t, cache, fmt.Sprint(i), random(10_000, byte(i)))
	}
	f.set(func() { f.down = true })
	clock.pass(fresh)
	for range 3 {
		for i := range 4 {
			want(t, cache, fmt.Sprint(i), random(10_000, byte(i)))
		}
	}
	if n := f.stats.Load(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	if _, _, err := cache.Open(t.Context(), "4", 0, -1); !errors.Is(err, errDown) {
		t.Errorf("a nar that isn't cached: %v", err)
	}
	clock.pass(downFor)
	want(t, cache, "0", random(10_000, 0))
	if n := f.stats.Load(); n != 2 || log.count("doesn't answer") != 1 {
		t.Errorf("asked %d times, logged %d times", n, log.count("doesn't answer"))
	}
	f.set(func() { f.down = false })
	clock.pass(downFor)
	want(t, cache, "0", random(10_000, 0))
	if f.stats.Load() != 3 || log.count("answers again") != 1 {
		t.Errorf("asked %d times; %d", f.stats.Load(), log.count("answers again"))
	}
}

// deaf never answers Stat, and ignores its context.
type deaf struct {
	*far
	until chan struct{}
}

func (d *deaf) Stat(context.Context, string) (bytestore.Info, error) {
	<-d.until
	return bytestore.Info{}, errDown
}

// TestHanging: a store that doesn't answer delays no reader of a copy.
func TestHanging(t *testing.T) {
	t.Parallel()
	f, clock := newFar(t), newClock()
	d := &deaf{f, make(chan struct{})}
	content := random(10_000, 4)
	put(t, f, name, content)
	cache := open(t, d, Options{Directory: t.TempDir(), MaxSize: 1 << 30, Now: clock.now})
	cache.checkTimeout = time.Millisecond
	cached(t, cache, name, content)
	clock.pass(fresh)
	for range 3 {
		want(t, cache, name, content)
	}
	cache.mu.Lock()
	cache.downUntil = time.Time{}
	cache.mu.Unlock()
	cache.checkTimeout = time.Hour
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := cache.Open(ctx, name, 0, -1); !errors.Is(err, context.Canceled) {
		t.Errorf("with a canceled context: %v", err)
	}
	close(d.until)
	settled(t, cache)
}

// TestRestart: a restart finds the copies and the order of their use. It ignores unreferenced
// files, and removes invalid copies.
func TestRestart(t *testing.T) {
	t.Parallel()
	f, clock := newFar(t), newClock()
	dir := t.TempDir()
	const size = 100_000
	// Not the names of copies.
	strangers := []string{"README", "ab/README", "filling/mine", "lost+found/x", "zz/" + strings.Repeat("z", 32) + "-1-01-1-"}
	for _, name := range strangers {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755), os.WriteFile(filepath.Join(dir, name), random(50_000, 1), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	leftover := filepath.Join(dir, "filling", "ABCDEFGHIJKLMNOPQRSTUVWXYZ")
	if err := os.WriteFile(leftover, random(50_000, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	cache := open(t, f, Options{Directory: dir, MaxSize: 10 * size, Now: clock.now})
	if cache.taken != 0 || len(cache.entries) != 0 {
		t.Errorf("with unreferenced files: %d bytes, %d entries", cache.taken, len(cache.entries))
	}
	if _, err := os.Stat(leftover); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an unfinished copy still exists: %v", err)
	}
	for i := range 8 {
		put(t, f, fmt.Sprint(i), random(size, byte(i)))
		cached(t, cache, fmt.Sprint(i), random(size, byte(i)))
		clock.pass(time.Second)
	}
	clock.pass(2 * touchEvery)
	cached(t, cache, "0", random(size, 0)) // used again
	truncated := copyOf(cache, "7")
	taken := cache.taken
	closeNow(t, cache)
	if err := os.Truncate(truncated, size-1); err != nil { // as after a crash
		t.Fatal(err)
	}
	// Two contents of one name, as after a crash before the removal of the older one.
	e := cache.entries[keyOf("6")]
	double := *e
	double.content.tag, double.content.modTime = "other", double.content.modTime-1
	if err := os.WriteFile(cache.path(&double), random(size, 9), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(cache.path(&double), clock.now().Add(-24*time.Hour), clock.now().Add(-24*time.Hour)); err != nil {
		t.Fatal(err)
	}

	opens, stats := f.opens.Load(), f.stats.Load()
	cache = open(t, f, Options{Directory: dir, MaxSize: 10 * size, Now: clock.now})
	if want := taken - taken/8; cache.taken != want || len(cache.entries) != 7 || len(copies(t, dir)) != 7 {
		t.Errorf("%d bytes of %d, %d entries, %d copies", cache.taken, want, len(cache.entries), len(copies(t, dir)))
	}
	for i := range 3 {
		if i == 1 {
			i = 6
		}
		cached(t, cache, fmt.Sprint(i), random(size, byte(i)))
	}
	if f.opens.Load() != opens || f.stats.Load() != stats+3 {
		t.Errorf("after a restart: read %d times, asked %d times", f.opens.Load()-opens, f.stats.Load()-stats)
	}
	closeNow(t, cache)

	// Half the size. The time of a file is that of the first use, unless it was used again
	// after more than an hour.
	cache = open(t, f, Options{Directory: dir, MaxSize: 4*size + 4*block, Now: clock.now})
	until(t, "it is small enough", func() bool { cache.mu.Lock(); defer cache.mu.Unlock(); return cache.taken <= cache.max })
	var left []string
	for i := range 8 {
		if copyOf(cache, fmt.Sprint(i)) != "" {
			left = append(left, fmt.Sprint(i))
		}
	}
	if want := []string{"0", "2", "5", "6"}; !slices.Equal(left, want) {
		t.Errorf("copies %q, want %q", left, want)
	}
	if n := cache.metrics.evictions.Load(); n != 3 {
		t.Errorf("%d evictions", n)
	}
	for _, name := range strangers {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || !bytes.Equal(got, random(50_000, 1)) {
			t.Errorf("%s, an unreferenced file: %v", name, err)
		}
	}
}

// TestOrder: the least recently used copy is evicted first, and never one that is being read.
func TestOrder(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	const size = 100_000
	for i := range 12 {
		put(t, f, fmt.Sprint(i), random(size, byte(i)))
	}
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 6 * (size + 2*block)})
	for i := range 5 {
		cached(t, cache, fmt.Sprint(i), random(size, byte(i)))
	}
	cached(t, cache, "0", random(size, 0))
	reading, _, err := cache.Open(t.Context(), "1", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	there := func(want ...string) {
		t.Helper()
		var got []string
		for i := range 12 {
			if copyOf(cache, fmt.Sprint(i)) != "" {
				got = append(got, fmt.Sprint(i))
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("copies %q, want %q", got, want)
		}
	}
	for i := 5; i < 8; i++ {
		cached2(t, cache, fmt.Sprint(i), random(size, byte(i)))
	}
	there("0", "1", "4", "5", "6", "7")
	reading.Close()
	cached(t, cache, "8", random(size, 8))
	there("0", "1", "5", "6", "7", "8")
	cached(t, cache, "9", random(size, 9))
	cached(t, cache, "10", random(size, 10))
	there("1", "6", "7", "8", "9", "10")
}

// cached2 is cached while another copy is being read.
func cached2(t *testing.T, cache *Tiered, name string, content []byte) {
	t.Helper()
	want(t, cache, name, content)
	until(t, "it is kept", func() bool { return copyOf(cache, name) != "" })
}

// TestLock: two processes can't use one directory.
func TestLock(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	dir := filepath.Join(t.TempDir(), "made", "if need be")
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 20})
	if _, err := New(f, Options{Directory: dir, MaxSize: 1 << 20}); err == nil || !strings.Contains(err.Error(), dir+" is in use by another server") {
		t.Errorf("%v", err)
	}
	closeNow(t, cache)
	open(t, f, Options{Directory: dir, MaxSize: 1 << 20})
	if _, err := New(f, Options{Directory: dir, MaxSize: 0}); err == nil {
		t.Error("a cache with size 0 is accepted")
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(f, Options{Directory: file, MaxSize: 1}); err == nil || !strings.Contains(err.Error(), file) {
		t.Errorf("a file as directory: %v", err)
	}
}

// TestNames: the file name of a copy records its content, and other names are rejected.
func TestNames(t *testing.T) {
	t.Parallel()
	for _, c := range []content{
		{}, {size: 5, tag: "tag", sum: [16]byte{1, 15: 2}}, {size: 1, modTime: -5, usage: 4096, tag: "a-b_c/\"\x00"},
		{size: 1<<63 - 1, modTime: 1<<63 - 1, usage: 1<<63 - 1, tag: strings.Repeat("\xff", longestTag), sum: [16]byte{255}},
	} {
		k := keyOf(c.tag)
		name := string(appendFileName(nil, k, &c))
		gotKey, got, ok := parseFileName(name)
		if !ok || gotKey != k || got != c || len(name) > 255 || strings.ContainsAny(name, "/\x00") {
			t.Errorf("%q: %+v, %v", name, got, ok)
		}
		for _, bad := range []string{name + "=", "x" + name, strings.Replace(name, "-", "-0", 1), strings.ToUpper(name), name[:len(name)/2]} {
			if _, _, ok := parseFileName(bad); ok && bad != name {
				t.Errorf("%q is parsed as a copy", bad)
			}
		}
	}
	for _, info := range []bytestore.Info{
		{Size: 1, Tag: strings.Repeat("x", longestTag+1), ModTime: time.Now()}, {Size: -1, ModTime: time.Now()}, {Size: 1},
	} {
		if _, ok := contentOf(info); ok {
			t.Errorf("%+v has no file name", info)
		}
	}
}

// TestBehind: the cache forwards the capabilities of the store, or returns its errors.
func TestBehind(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 20})
	if cache.IsRemote() {
		t.Errorf("a directory counts as remote")
	}
	if _, err := cache.Presign(t.Context(), name, time.Hour); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	if folder, err := cache.Spool(); err != nil || !strings.HasPrefix(folder, f.String()) {
		t.Errorf("the spool of a directory is %s, %v", folder, err)
	}
	if free, size, err := cache.FreeSpace(); err != nil || free > size || size == 0 {
		t.Errorf("%d of %d bytes are free, %v", free, size, err)
	}
	// A store without capabilities.
	plain := open(t, struct {
		*far
		bytestore.Defaults
	}{far: f}, Options{Directory: t.TempDir(), MaxSize: 1 << 20})
	if folder, err := plain.Spool(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%s, %v", folder, err)
	}
	if _, _, err := plain.FreeSpace(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%v", err)
	}
	file := filepath.Join(t.TempDir(), "x")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	opened, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	if _, err := plain.StageFile(t.Context(), name, opened, 1); !errors.Is(err, bytestore.ErrCantShare) {
		t.Errorf("%v", err)
	}
	can := open(t, able{f}, Options{Directory: t.TempDir(), MaxSize: 1 << 20})
	if url, err := can.Presign(t.Context(), name, time.Hour); err != nil || url != "far:"+name || can.Concurrency() != 64 {
		t.Errorf("%s, %v, %d", url, err, can.Concurrency())
	}
}

// able is a store with all capabilities.
type able struct{ *far }

func (able) Concurrency() int { return 64 }
func (able) Presign(_ context.Context, name string, _ time.Duration) (string, error) {
	return "far:" + name, nil
}

// TestCopyAhead: if a copy was last used by a clock that was ahead, later uses are recorded
// again.
func TestCopyAhead(t *testing.T) {
	t.Parallel()
	f, clock := newFar(t), newClock()
	dir := t.TempDir()
	put(t, f, "1", random(100_000, 1))
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 20, Now: clock.now})
	cached(t, cache, "1", random(100_000, 1))
	path, ahead := copyOf(cache, "1"), clock.now().AddDate(1, 0, 0)
	closeNow(t, cache)
	if err := os.Chtimes(path, ahead, ahead); err != nil {
		t.Fatal(err)
	}
	cache = open(t, f, Options{Directory: dir, MaxSize: 1 << 20, Now: clock.now})
	<-cache.scanned
	clock.pass(2 * touchEvery)
	cached(t, cache, "1", random(100_000, 1))
	closeNow(t, cache)
	if info, err := os.Stat(path); err != nil || info.ModTime().After(clock.now()) {
		t.Errorf("last used at %v, %v", info.ModTime(), err)
	}
}

// TestDirect: a reader that verifies the store gets its bytes, not those of the copy.
func TestDirect(t *testing.T) {
	t.Parallel()
	f, clock := newFar(t), newClock()
	before, after := random(10_000, 1), random(10_000, 2)
	put(t, f, name, before)
	dir := t.TempDir()
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30, Now: clock.now})
	direct := bytestore.Direct(t.Context())
	if got, _, err := read(direct, cache, name, 0, -1); err != nil || !bytes.Equal(got, before) {
		t.Error(err)
	}
	if n := len(copies(t, dir)); n != 0 {
		t.Errorf("%d copies", n)
	}
	cached(t, cache, name, before)
	put(t, f, name, after)
	if got, _, err := read(direct, cache, name, 0, -1); err != nil || !bytes.Equal(got, after) {
		t.Errorf("it reads the copy: %v", err)
	}
}
