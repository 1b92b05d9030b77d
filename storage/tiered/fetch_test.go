package tiered

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"nar-herder/storage/bytestore"
	"sync"
	"syscall"
	"testing"
)

const name = "nar/lzip/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"

// TestOneFetchForMany: concurrent readers share one fetch, even if some of them leave,
// including the first.
func TestOneFetchForMany(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(1<<20, 1)
	put(t, f, name, content)
	let := make(chan int)
	f.body = func(_ string, _ int64, r io.ReadCloser) io.ReadCloser {
		return &gated{r, t.Context(), let}
	}
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 30})
	var all, read sync.WaitGroup
	firstCtx, leave := context.WithCancel(t.Context())
	left := make(chan struct{}) // by the first
	for i := range 100 {
		all.Add(1)
		read.Go(func() {
			ctx, offset := t.Context(), int64(0)
			switch {
			case i == 0:
				ctx = firstCtx
			case i%3 == 1:
				offset = 500_000
			}
			r, info, err := cache.Open(ctx, name, offset, -1)
			all.Done()
			if err != nil || info.Size != 1<<20 {
				t.Errorf("%+v, %v", info, err)
				return
			}
			defer r.Close()
			if i%4 == 2 { // reads a little, and leaves
				if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
					t.Error(err)
				}
				return
			}
			got, err := io.ReadAll(r)
			if i == 0 {
				close(left)
			}
			switch {
			case i == 0 && !errors.Is(err, context.Canceled):
				t.Errorf("a reader that has left: %v", err)
			case i > 0 && (err != nil || !bytes.Equal(got, content[offset:])):
				t.Errorf("reader %d: %d bytes, %v", i, len(got), err)
			}
		})
		if i == 0 {
			all.Wait() // it has begun the fetch
		}
	}
	all.Wait()
	let <- 100_000
	leave()
	<-left // it could read further bytes without waiting
	close(let)
	read.Wait()
	settled(t, cache)
	if n := f.opens.Load(); n != 1 {
		t.Errorf("the store was opened %d times", n)
	}
	want(t, cache, name, content)
	if n := f.opens.Load(); n != 1 || f.stats.Load() != 0 {
		t.Errorf("then it was opened %d times, and asked %d times", n, f.stats.Load())
	}
	if cache.metrics.hits.Load() != 100 || cache.metrics.misses.Load() != 1 {
		t.Errorf("%d hits, %d misses", cache.metrics.hits.Load(), cache.metrics.misses.Load())
	}
}

// TestNotFetched: a read of a small part doesn't fetch the nar, and leaves nothing open.
func TestNotFetched(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(400_000, 2)
	put(t, f, name, content)
	put(t, f, bytestore.IdentityName, []byte("me\n"))
	put(t, f, bytestore.OwnerName, []byte("them\n"))
	put(t, f, "empty", nil)
	dir := t.TempDir()
	cache := open(t, f, Options{Directory: dir, MaxSize: 4*400_000 - 1})
	check := func(what string, name string, offset, length int64, whole []byte) {
		t.Helper()
		got, info, err := read(t.Context(), cache, name, offset, length)
		end := int64(len(whole))
		if length >= 0 {
			end = min(end, offset+length)
		}
		if err != nil || info.Size != int64(len(whole)) || !bytes.Equal(got, whole[min(offset, end):end]) {
			t.Errorf("%s: %d bytes, %+v, %v", what, len(got), info, err)
		}
		settled(t, cache)
		if n := len(copies(t, dir)); n != 0 {
			t.Errorf("%s: %d copies", what, n)
		}
		until(t, "all is closed", func() bool { return f.opens.Load() == f.closes.Load() })
	}
	check("a file too large for the cache", name, 0, -1, content)
	check("most of it", name, 10, 399_000, content)
	cache.max *= 2
	check("its first bytes", name, 0, 100, content)
	check("less than half", name, 5, 199_990, content)
	check("the end", name, 100_000, -1, content)
	check("behind the end", name, 400_000, -1, content)
	check("nothing", name, 0, 0, content)
	check("the storage's name", bytestore.IdentityName, 0, -1, []byte("me\n"))
	check("its owner's", bytestore.OwnerName, 0, -1, []byte("them\n"))
	check("an empty file", "empty", 0, -1, nil)
	for range 2 { // as for HEAD
		r, info, err := cache.Open(t.Context(), name, 0, 400_000)
		if err != nil || info.Size != 400_000 {
			t.Fatal(info, err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		check("opened and not read", "empty", 0, -1, nil)
	}
	if got, _, err := read(t.Context(), cache, name, 10, 399_000); err != nil || !bytes.Equal(got, content[10:399_010]) {
		t.Errorf("most of it: %v", err)
	}
	settled(t, cache)
	if n := len(copies(t, dir)); n != 1 {
		t.Errorf("after reading most of it: %d copies", n)
	}
	before := f.opens.Load()
	for _, part := range [][2]int64{{0, 0}, {0, 100}, {399_999, 1}, {100_000, -1}, {400_000, 5}} {
		got, _, err := read(t.Context(), cache, name, part[0], part[1])
		end := min(400_000, part[0]+part[1])
		if part[1] < 0 {
			end = 400_000
		}
		if err != nil || !bytes.Equal(got, content[part[0]:end]) {
			t.Errorf("%v of the copy: %v", part, err)
		}
	}
	if f.opens.Load() != before {
		t.Error("parts of a copy are read from the store")
	}
}

// TestPassedOn: a passed reader isn't cancelled if its owner is the last user of the entry,
// nor if the cache is closed.
func TestPassedOn(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(400_000, 13)
	put(t, f, name, content)
	for _, test := range []struct {
		name  string
		close bool
	}{{"the fetch leaves last", false}, {"the cache is closed", true}} {
		t.Run(test.name, func(t *testing.T) {
			cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 400_000})
			// As acquire and fetch do, with fetch stopped before it leaves the entry.
			fetching := newFill(cache.ctx, name, -1)
			e := &entry{key: keyOf(name), users: 2, live: &live{fill: fetching}}
			cache.mu.Lock()
			cache.entries[e.key] = e
			cache.mu.Unlock()
			if err := cache.fetchInto(e, fetching); err != errDirect {
				t.Fatal(err)
			}
			if err := fetching.opened(t.Context()); err != errDirect {
				t.Fatal(err)
			}
			passed, info := fetching.takePassed()
			cache.leave(e)
			r, _, err := cache.handOver(t.Context(), passed, info, 1000)
			if err != nil {
				t.Fatal(err)
			}
			if test.close {
				if err := cache.Close(); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[1000:]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			cache.leave(e) // as fetch does
			if err := r.Close(); err != nil {
				t.Error(err)
			}
			if fetching.ctx.Err() == nil {
				t.Error("the context of a closed reader hasn't ended")
			}
		})
	}
	if opens, closes := f.opens.Load(), f.closes.Load(); opens != closes {
		t.Errorf("%d opened, %d closed", opens, closes)
	}
}

// TestAbsent: all concurrent readers get fs.ErrNotExist.
func TestAbsent(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 20})
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if _, _, err := cache.Open(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("%v", err)
			}
		})
	}
	group.Wait()
	f.set(func() { f.down = true })
	if _, _, err := cache.Open(t.Context(), name, 0, -1); !errors.Is(err, errDown) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v", err)
	}
	settled(t, cache)
	if cache.taken != 0 || len(cache.entries) != 0 {
		t.Errorf("%d bytes, %d entries", cache.taken, len(cache.entries))
	}
}

// TestCut: an interrupted fetch resumes. If that fails, readers continue by themselves, or get
// an error, but never an early EOF.
func TestCut(t *testing.T) {
	t.Parallel()
	content := random(1<<20, 3)
	for _, test := range []struct {
		name string
		// body wraps the reader of the nth Open.
		body  func(n int64, offset int64, r io.ReadCloser) io.ReadCloser
		fails bool
		kept  bool
		opens int64
	}{
		{"once", func(n, _ int64, r io.ReadCloser) io.ReadCloser {
			if n == 1 {
				return &breaking{r, 300_000, syscall.ECONNRESET}
			}
			return r
		}, false, true, 2},
		{"once, with a clean end", func(n, _ int64, r io.ReadCloser) io.ReadCloser {
			if n == 1 {
				return &breaking{r, 300_000, io.EOF}
			}
			return r
		}, false, true, 2},
		{"the fetch permanently", func(n, _ int64, r io.ReadCloser) io.ReadCloser {
			if n < 3 {
				return &breaking{r, int(2-n) * 300_000, syscall.ECONNRESET}
			}
			return r
		}, false, false, 3},
		{"all", func(_, offset int64, r io.ReadCloser) io.ReadCloser {
			return &breaking{r, max(0, 300_000-int(offset)), syscall.ECONNRESET}
		}, true, false, 3},
		// The last bytes alone would look right.
		{"damaged in the end", func(_, offset int64, r io.ReadCloser) io.ReadCloser {
			return &breaking{r, 1<<20 - 1000 - int(offset), bytestore.ErrDamaged}
		}, true, false, 1},
		{"more than there is", func(n, _ int64, r io.ReadCloser) io.ReadCloser {
			return struct {
				io.Reader
				io.Closer
			}{io.MultiReader(r, bytes.NewReader([]byte("more"))), r}
		}, false, false, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			f := newFar(t)
			put(t, f, name, content)
			f.body = func(_ string, offset int64, r io.ReadCloser) io.ReadCloser {
				return test.body(f.opens.Load(), offset, r)
			}
			dir := t.TempDir()
			cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30})
			got, info, err := read(t.Context(), cache, name, 0, -1)
			if info.Size != 1<<20 || (err != nil) != test.fails || err == nil && !bytes.Equal(got, content) || !bytes.HasPrefix(content, got) {
				t.Errorf("%d bytes, %+v, %v", len(got), info, err)
			}
			settled(t, cache)
			_, files := onDisk(t, dir)
			if kept := copyOf(cache, name) != ""; kept != test.kept || !kept && (len(files) > 0 || cache.taken != 0) {
				t.Errorf("cached: %v; files %q, %d bytes", kept, files, cache.taken)
			}
			if n := f.opens.Load(); n != test.opens {
				t.Errorf("opened %d times, want %d", n, test.opens)
			}
			until(t, "all is closed", func() bool { return f.closes.Load() == f.opens.Load() })
		})
	}
}

// TestReplacedWhileFetched: the bytes of two contents are never mixed.
func TestReplacedWhileFetched(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	before, after := random(1<<20, 4), random(1<<20, 5)
	put(t, f, name, before)
	f.body = func(_ string, offset int64, r io.ReadCloser) io.ReadCloser {
		if offset == 0 {
			put(t, f, name, after) // by another process, of the same length
			f.set(func() { f.body = nil })
			return &breaking{r, 300_000, syscall.ECONNRESET}
		}
		return r
	}
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 30})
	if got, _, err := read(t.Context(), cache, name, 0, -1); !errors.Is(err, errReplaced) || !bytes.HasPrefix(before, got) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	settled(t, cache)
	want(t, cache, name, after)
}

// TestRemovedWhileFetched: a fetch that began before a removal or replacement is not cached.
func TestRemovedWhileFetched(t *testing.T) {
	t.Parallel()
	for _, remove := range []bool{true, false} {
		f := newFar(t)
		before, after := random(1<<20, 6), random(1<<20, 7)
		put(t, f, name, before)
		let := make(chan int)
		f.body = func(_ string, _ int64, r io.ReadCloser) io.ReadCloser { return &gated{r, t.Context(), let} }
		dir := t.TempDir()
		cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30})
		r, _, err := cache.Open(t.Context(), name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		f.set(func() { f.body = nil })
		go func() { let <- 1000; close(let) }()
		if _, err := io.ReadFull(r, make([]byte, 1000)); err != nil {
			t.Fatal(err)
		}
		if remove {
			if err := cache.Remove(t.Context(), name); err != nil {
				t.Fatal(err)
			}
			if _, _, err := cache.Open(t.Context(), name, 0, -1); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("after the removal: %v", err)
			}
		} else {
			staged, err := cache.Stage(t.Context(), name, bytes.NewReader(after), 1<<20)
			if err == nil {
				err = staged.Commit(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			cached(t, cache, name, after)
		}
		if rest, err := io.ReadAll(r); err != nil || !bytes.Equal(rest, before[1000:]) {
			t.Errorf("a reader of the old content: %d bytes, %v", len(rest), err)
		}
		r.Close()
		until(t, "the old one is gone", func() bool {
			_, files := onDisk(t, dir)
			cache.mu.Lock()
			defer cache.mu.Unlock()
			return remove && len(files) == 0 && cache.taken == 0 || !remove && len(files) == 1 && cache.taken == 1<<20
		})
	}
}
