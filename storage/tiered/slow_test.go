package tiered

import (
	"bytes"
	"context"
	"io"
	"nar-herder/storage/bytestore"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// TestStalled: a stalled store blocks neither the current readers nor later ones.
func TestStalled(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(1<<20, 8)
	put(t, f, name, content)
	hang := make(chan int, 1)
	hang <- 1000
	defer close(hang)
	f.body = func(_ string, _ int64, r io.ReadCloser) io.ReadCloser {
		f.set(func() { f.body = nil })
		return &gated{&breaking{r, 1000, io.ErrNoProgress}, context.Background(), hang} // it ignores its context
	}
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 30})
	cache.stalled = time.Second
	want(t, cache, name, content)
	want(t, cache, name, content)
}

// TestManyFetches: reads beyond the maximum number of fetches go to the store.
func TestManyFetches(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(100_000, 9)
	let := make(chan int)
	for _, name := range []string{"a", "b", "c"} {
		put(t, f, name, content)
	}
	f.body = func(name string, _ int64, r io.ReadCloser) io.ReadCloser {
		if name == "c" {
			return r
		}
		return &gated{r, t.Context(), let}
	}
	dir := t.TempDir()
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30})
	cache.mostFills = 2
	var group sync.WaitGroup
	for _, name := range []string{"a", "b"} {
		r, _, err := cache.Open(t.Context(), name, 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		group.Go(func() {
			defer r.Close()
			if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
				t.Error(err)
			}
		})
	}
	want(t, cache, "c", content)
	if copyOf(cache, "c") != "" {
		t.Error("a third fetch was started")
	}
	close(let)
	group.Wait()
	settled(t, cache)
	if n := len(copies(t, dir)); n != 2 {
		t.Errorf("%d copies", n)
	}
	cached(t, cache, "c", content)
	if copyOf(cache, "c") == "" {
		t.Error("it is still not fetched")
	}
}

// TestFarAhead: a reader that starts far ahead of a fetch doesn't wait for it.
func TestFarAhead(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(farAhead+1000, 10)
	put(t, f, name, content)
	let := make(chan int)
	f.body = func(_ string, offset int64, r io.ReadCloser) io.ReadCloser {
		if offset > 0 {
			return r
		}
		return &gated{r, t.Context(), let}
	}
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 30})
	r, _, err := cache.Open(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	got, _, err := read(t.Context(), cache, name, farAhead+1, -1)
	if err != nil || !bytes.Equal(got, content[farAhead+1:]) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	close(let)
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content) {
		t.Error(err)
	}
	r.Close()
}

// TestGrowing: readers can send from the file while it grows.
func TestGrowing(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(1<<20, 11)
	put(t, f, name, content)
	cache := open(t, f, Options{Directory: t.TempDir(), MaxSize: 1 << 30})
	for range 2 { // while it grows, and afterwards
		r, _, err := cache.Open(t.Context(), name, 1000, 1<<19)
		if err != nil {
			t.Fatal(err)
		}
		growing := r.(bytestore.GrowingFile)
		var got []byte
		for len(got) < 1<<19 {
			n, err := growing.Next()
			if err != nil {
				t.Fatal(err)
			}
			file, offset := growing.Local()
			part := make([]byte, n)
			if _, err := file.ReadAt(part, offset); err != nil {
				t.Fatal(err)
			}
			growing.Skip(n)
			got = append(got, part...)
		}
		if n, err := growing.Next(); n != 0 || err != io.EOF {
			t.Errorf("at its end: %d, %v", n, err)
		}
		if !bytes.Equal(got, content[1000:1000+1<<19]) {
			t.Error("other bytes")
		}
		r.Close()
		settled(t, cache)
	}
	if n := f.opens.Load(); n > 2 { // the part, then the whole
		t.Errorf("opened %d times", n)
	}
}

// TestClose: after Close, reads go to the store, and open readers remain usable.
func TestClose(t *testing.T) {
	t.Parallel()
	f := newFar(t)
	content := random(1<<20, 12)
	put(t, f, name, content)
	put(t, f, "other", content)
	let := make(chan int, 1)
	f.body = func(name string, offset int64, r io.ReadCloser) io.ReadCloser {
		if name == "other" && offset == 0 {
			return &gated{r, t.Context(), let}
		}
		return r
	}
	dir := t.TempDir()
	cache := open(t, f, Options{Directory: dir, MaxSize: 1 << 30})
	cached(t, cache, name, content)
	whole, _, err := cache.Open(t.Context(), name, 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	coming, _, err := cache.Open(t.Context(), "other", 0, -1)
	if err != nil {
		t.Fatal(err)
	}
	let <- 1000
	if _, err := io.ReadFull(coming, make([]byte, 1000)); err != nil {
		t.Fatal(err)
	}
	f.set(func() { f.body = nil })
	close(let)
	if err := cache.Close(); err != nil {
		t.Fatal(err)
	}
	for r, from := range map[io.ReadCloser]int{whole: 0, coming: 1000} {
		if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, content[from:]) {
			t.Errorf("%d bytes, %v", len(got), err)
		}
		r.Close()
	}
	before := f.opens.Load()
	want(t, cache, name, content)
	if f.opens.Load() == before {
		t.Error("a closed cache serves copies")
	}
	if entries, err := os.ReadDir(filepath.Join(dir, "filling")); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
