package tiered

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/logonce"
	"nar-herder/internal/testfs"
)

// TestBound: the files never exceed the limit, including unfinished ones, and the counted
// space is the used space.
func TestBound(t *testing.T) {
	t.Parallel()
	f, clock := newFar(t), newClock()
	const names, most = 30, 600_000
	size := func(i int) int { return 1 + i*i*170 } // up to 143,000
	for i := range names {
		put(t, f, fmt.Sprint(i), random(size(i), byte(i)))
	}
	dir := t.TempDir()
	cache := open(t, f, Options{Directory: dir, MaxSize: most, Now: clock.now})
	write := cache.writeAt
	cache.writeAt = func(file *os.File, p []byte, offset int64) (int, error) {
		n, err := write(file, p, offset)
		// Without concurrent changes, so that the walk counts no file twice.
		cache.making.Lock()
		defer cache.making.Unlock()
		if taken, files := onDisk(t, dir); taken > most {
			t.Errorf("%d files use %d bytes", len(files), taken)
		}
		return n, err
	}
	var group sync.WaitGroup
	for g := range 8 {
		group.Go(func() {
			for i := range 60 {
				i = (i*7 + g*11) % names
				if i == 13 && g == 2 {
					if err := cache.Remove(t.Context(), fmt.Sprint(i+100)); err != nil {
						t.Error(err)
					}
					cache.dropName(fmt.Sprint(i))
				}
				got, _, err := read(t.Context(), cache, fmt.Sprint(i), 0, -1)
				if err != nil || !bytes.Equal(got, random(size(i), byte(i))) {
					t.Errorf("%d: %v", i, err)
				}
				clock.pass(noRoomFor / 8)
			}
		})
	}
	group.Wait()
	settled(t, cache)
	// Above, all copies may have been in use whenever space was needed, so that none was
	// evicted. Now read the names one by one: each is cached, and together they don't fit.
	clock.pass(noRoomFor)
	for i := range names {
		cached(t, cache, fmt.Sprint(i), random(size(i), byte(i)))
		if copyOf(cache, fmt.Sprint(i)) == "" {
			t.Errorf("%d is not cached", i)
		}
	}
	taken, _ := onDisk(t, dir)
	if taken != cache.taken || taken < most/4 || cache.metrics.evictions.Load() == 0 {
		t.Errorf("%d bytes counted, %d used; %d evictions", cache.taken, taken, cache.metrics.evictions.Load())
	}
	var idle int
	for e := cache.idle.root.after; e != &cache.idle.root; e = e.after {
		idle++
	}
	if idle != len(cache.entries) || idle != len(copies(t, dir)) {
		t.Errorf("%d idle, %d entries, %d copies", idle, len(cache.entries), len(copies(t, dir)))
	}
}

// TestFull: if the disk is smaller than the limit, copies are evicted. If there is no space at
// all, or the disk is not writable, reads go to the store, and that is logged once an hour.
func TestFull(t *testing.T) {
	t.Parallel()
	dir := testfs.Small(t, 1<<20)
	f, clock, log := newFar(t), newClock(), new(logs)
	const size = 100_000
	for i := range 30 {
		put(t, f, fmt.Sprint(i), random(size, byte(i)))
	}
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30, Now: clock.now, Log: log.logger()})
	for i := range 15 {
		cached(t, cache, fmt.Sprint(i), random(size, byte(i)))
	}
	if n := len(copies(t, dir)); n < 8 || copyOf(cache, "14") == "" || copyOf(cache, "0") != "" || log.count("WARN") != 0 {
		t.Errorf("%d copies; %s", n, log.String())
	}
	for i := range 15 {
		cache.dropName(fmt.Sprint(i))
	}
	free := testfs.Fill(t, dir)
	for i := range 3 {
		cached(t, cache, fmt.Sprint(15+i), random(size, byte(15+i)))
		clock.pass(2 * quietFor)
	}
	if n := log.count("WARN"); n != 1 || log.count("no space left") != 1 || len(copies(t, dir)) != 0 || cache.taken != 0 {
		t.Errorf("%d lines: %s; %d bytes", n, log.String(), cache.taken)
	}
	clock.pass(logonce.Every)
	opens := f.opens.Load()
	cached(t, cache, "18", random(size, 18))
	cached(t, cache, "19", random(size, 19))
	if n := f.opens.Load() - opens; n != 3 || log.count("WARN") != 2 {
		t.Errorf("opened %d times for two reads, the second without a fetch; %d lines", n, log.count("WARN"))
	}
	free()
	clock.pass(2 * quietFor)
	cached(t, cache, "20", random(size, 20))
	if copyOf(cache, "20") == "" {
		t.Error("nothing is cached although there is space again")
	}
	testfs.Freeze(t, dir)
	for range 2 {
		cached(t, cache, "20", random(size, 20)) // there
		cached(t, cache, "21", random(size, 21))
		if err := cache.Remove(t.Context(), "21"); err != nil {
			t.Error(err)
		}
		put(t, f, "21", random(size, 21))
		clock.pass(2 * touchEvery)
	}
	// A copy that can't be removed is not served either.
	if err := cache.Remove(t.Context(), "20"); err != nil {
		t.Error(err)
	}
	if _, _, err := cache.Open(t.Context(), "20", 0, -1); err == nil {
		t.Error("a removed nar is served")
	}
}

// TestWriteFails: after a failed write, readers continue with the store at the same offset,
// and nothing is cached.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	for _, good := range []int64{0, 1, 2} {
		f, clock, log := newFar(t), newClock(), new(logs)
		content := random(1<<20, 1)
		put(t, f, name, content)
		dir := t.TempDir()
		cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30, Now: clock.now, Log: log.logger()})
		write := cache.writeAt
		first := make(chan struct{})
		cache.writeAt = func(file *os.File, p []byte, offset int64) (int, error) {
			if offset >= good*piece {
				if good > 0 {
					<-first
				}
				return 0, &os.PathError{Op: "write", Path: file.Name(), Err: syscall.EIO}
			}
			return write(file, p, offset)
		}
		r, _, err := cache.Open(t.Context(), name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, min(good, 1)*1000)
		if _, err := io.ReadFull(r, got); err != nil {
			t.Error(err)
		}
		close(first)
		rest, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(append(got, rest...), content) {
			t.Errorf("%d bytes, %v", len(rest), err)
		}
		r.Close()
		settled(t, cache)
		if _, files := onDisk(t, dir); len(files) != 0 || cache.taken != 0 || log.count("input/output error") != 1 {
			t.Errorf("%q, %d bytes; %s", files, cache.taken, log.String())
		}
		cache.writeAt = write
		cached(t, cache, name, content)
		if copyOf(cache, name) != "" {
			t.Error("tried again at once")
		}
		clock.pass(quietFor)
		cached(t, cache, name, content)
		if copyOf(cache, name) == "" {
			t.Error("not tried again")
		}
	}
}

// TestDamaged: a missing or damaged copy is fetched again, and its current readers continue
// with the store.
func TestDamaged(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(1<<20, 2)
	put(t, f, name, content)
	dir := t.TempDir()
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30, Now: newClock().now})
	calm := func() { cache.mu.Lock(); cache.quietUntil = time.Time{}; cache.mu.Unlock() }
	for what, damage := range map[string]func(file string) error{
		"removed":   os.Remove,
		"truncated": func(file string) error { return os.Truncate(file, 1000) },
		"longer":    func(file string) error { return os.Truncate(file, 2<<20) },
		"a directory": func(file string) error {
			if err := os.Remove(file); err != nil {
				return err
			}
			return os.Mkdir(file, 0o755)
		},
	} {
		cached(t, cache, name, content)
		file := copyOf(cache, name)
		if err := damage(file); err != nil {
			t.Fatal(what, err)
		}
		want(t, cache, name, content)
		calm()
		cached(t, cache, name, content)
		if info, err := os.Stat(copyOf(cache, name)); err != nil || info.Size() != 1<<20 {
			t.Errorf("%s: %v, %v", what, info, err)
		}
	}
	// Damage during a read, and during sendfile(2), which only Close can detect.
	for _, sent := range []bool{false, true} {
		cached(t, cache, name, content)
		r, _, err := cache.Open(t.Context(), name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		head := make([]byte, 2000)
		if _, err := io.ReadFull(r, head); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(copyOf(cache, name), 1000); err != nil {
			t.Fatal(err)
		}
		if !sent {
			rest, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(append(head, rest...), content) {
				t.Errorf("%d bytes, %v", len(rest), err)
			}
		}
		r.Close()
		settled(t, cache)
		if copyOf(cache, name) != "" || cache.taken != 0 {
			t.Errorf("the copy still exists, %d bytes", cache.taken)
		}
		calm()
	}
}

// TestInUse: if all copies are being read, none is evicted, and nothing is fetched for a
// moment.
func TestInUse(t *testing.T) {
	t.Parallel()
	f, clock := newFar(t), newClock()
	const size = 100_000
	for i := range 6 {
		put(t, f, fmt.Sprint(i), random(size, byte(i)))
	}
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 4*size + 8*block, Now: clock.now})
	var readers []io.ReadCloser
	for i := range 4 {
		cached2(t, cache, fmt.Sprint(i), random(size, byte(i)))
		r, _, err := cache.Open(t.Context(), fmt.Sprint(i), 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		readers = append(readers, r)
	}
	before := f.opens.Load()
	want(t, cache, "4", random(size, 4))
	until(t, "it was found out", func() bool { cache.mu.Lock(); defer cache.mu.Unlock(); return cache.fills == 0 })
	want(t, cache, "5", random(size, 5))
	if n := f.opens.Load() - before; n != 3 || cache.metrics.evictions.Load() != 0 || cache.metrics.troubles.Load() != 0 {
		t.Errorf("opened %d times for two reads, the second without a fetch; %d evictions", n, cache.metrics.evictions.Load())
	}
	for i, r := range readers {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, random(size, byte(i))) {
			t.Error(err)
		}
		r.Close()
	}
	clock.pass(noRoomFor)
	cached(t, cache, "5", random(size, 5))
	if copyOf(cache, "5") == "" {
		t.Error("it is still not cached")
	}
}

// TestMetrics: the metrics can be registered and collected.
func TestMetrics(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	put(t, f, name, random(10_000, 1))
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 20})
	cached(t, cache, name, random(10_000, 1))
	cached(t, cache, name, random(10_000, 1))
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(cache); err != nil {
		t.Fatal(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		m := family.Metric[0]
		got[family.GetName()] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
	}
	for name, want := range map[string]float64{
		"hits_total": 1, "misses_total": 1, "evictions_total": 0, "fetched_total": 1, "fetched_bytes_total": 10_000, "failures_total": 0,
		"troubles_total": 0, "checks_total": 0, "bytes": 12 << 10, "limit_bytes": 1 << 20, "files": 1, "fetching": 0, "ready": 1,
	} {
		if v, ok := got["narherder_storage_cache_"+name]; !ok || v != want {
			t.Errorf("%s is %v, not %v", name, v, want)
		}
	}
}

// BenchmarkHit opens, reads and closes a small copy.
func BenchmarkHit(b *testing.B) {
	f := newFar(b)
	content := random(10_000, 1)
	put(b, f, name, content)
	cache := open(b, f, Options{Directory: b.TempDir(), MaxSize: 1 << 20, Now: newClock().now})
	cached(b, cache, name, content)
	buffer := make([]byte, len(content))
	b.ReportAllocs()
	for b.Loop() {
		r, _, err := cache.Open(b.Context(), name, 0, -1)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(r, buffer); err != nil {
			b.Fatal(err)
		}
		r.Close()
	}
}
