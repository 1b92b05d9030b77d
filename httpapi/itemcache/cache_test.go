package itemcache

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"nar-herder/narinfo"
)

// hashNumbered returns a hash. Those that differ by cacheParts are of the same part.
func hashNumbered(n int) (hash narinfo.PathHash) {
	binary.LittleEndian.PutUint64(hash[:], uint64(n))
	return hash
}

func newBodyCache(maximum int64) *Cache[[]byte] {
	return New(maximum, func(body []byte) int64 { return int64(cap(body)) })
}

func (c *Cache[V]) has(hash narinfo.PathHash) bool {
	_, ok, _ := c.Get(hash)
	return ok
}

// fill adds a value after a miss, as a request does.
func (c *Cache[V]) fill(hash narinfo.PathHash, value V) {
	_, _, generation := c.Get(hash)
	c.Put(hash, value, generation)
}

func TestCacheTickets(t *testing.T) {
	t.Parallel()
	here, samePart, otherPart := hashNumbered(0), hashNumbered(cacheParts), hashNumbered(1)
	for name, test := range map[string]struct {
		meanwhile func(*Cache[[]byte])
		kept      bool
	}{
		"nothing":                      {func(c *Cache[[]byte]) {}, true},
		"the item changes":             {func(c *Cache[[]byte]) { c.Forget(here) }, false},
		"the item changes twice":       {func(c *Cache[[]byte]) { c.Forget(here); c.Forget(here) }, false},
		"another of the part changes":  {func(c *Cache[[]byte]) { c.Forget(samePart) }, false},
		"one of another part changes":  {func(c *Cache[[]byte]) { c.Forget(otherPart) }, true},
		"all are forgotten":            {func(c *Cache[[]byte]) { c.ForgetAll() }, false},
		"nothing may be kept":          {func(c *Cache[[]byte]) { c.Suspend() }, false},
		"nothing might be kept":        {func(c *Cache[[]byte]) { c.Suspend(); c.Resume() }, false},
		"others come":                  {func(c *Cache[[]byte]) { c.fill(samePart, []byte("x")) }, true},
		"resumed without a suspension": {func(c *Cache[[]byte]) { c.Resume() }, false},
	} {
		c := newBodyCache(1 << 20)
		_, ok, generation := c.Get(here)
		if ok {
			t.Fatal("found in an empty cache")
		}
		test.meanwhile(c)
		c.Put(here, []byte("old"), generation)
		if got := c.has(here); got != test.kept {
			t.Errorf("%s meanwhile: kept %v, want %v", name, got, test.kept)
		}
		if !test.kept && name != "nothing may be kept" {
			if c.fill(here, []byte("new")); !c.has(here) {
				t.Errorf("%s: then nothing is kept any more", name)
			}
		}
	}
}

// TestCachePutTwice: two requests read the same item concurrently.
func TestCachePutTwice(t *testing.T) {
	t.Parallel()
	c := newBodyCache(1 << 20)
	_, _, generation := c.Get(hashNumbered(0))
	for range 3 {
		c.Put(hashNumbered(0), make([]byte, 100), generation)
	}
	if count, size := c.Usage(); count != 1 || size != 100+cacheOverhead {
		t.Errorf("%d values of %d bytes", count, size)
	}
	c.Forget(hashNumbered(0))
	c.Forget(hashNumbered(0))
	if count, size := c.Usage(); count != 0 || size != 0 {
		t.Errorf("%d values of %d bytes", count, size)
	}
}

// TestCacheBounds fills caches with values of all sizes.
func TestCacheBounds(t *testing.T) {
	t.Parallel()
	for _, maximum := range []int64{0, 1, 1000, cacheParts * cacheOverhead, 100_000, 1 << 20} {
		c := newBodyCache(maximum)
		random := rand.New(rand.NewPCG(1, uint64(maximum)))
		for n := range 5_000 { // ten times as many as fit into the largest
			body := make([]byte, random.IntN(5000))
			if n%3 == 0 {
				body = body[:len(body)/2] // its capacity counts
			}
			c.fill(hashNumbered(n), body)
			if n%100 == 0 {
				c.Forget(hashNumbered(random.IntN(n + 1)))
			}
			if count, size := c.Usage(); size > maximum || size < int64(count)*cacheOverhead {
				t.Fatalf("%d bytes at most: %d values of %d bytes", maximum, count, size)
			}
		}
		count, size := c.Usage()
		if maximum >= 100_000 && (count == 0 || size < maximum/2) {
			t.Errorf("%d bytes at most: only %d values of %d bytes", maximum, count, size)
		}
		c.ForgetAll()
		if count, size := c.Usage(); count != 0 || size != 0 {
			t.Errorf("%d bytes at most: %d values of %d bytes after all were forgotten", maximum, count, size)
		}
	}
}

// TestCacheKeepsTheLatest: recently used values stay.
func TestCacheKeepsTheLatest(t *testing.T) {
	t.Parallel()
	c := newBodyCache(1 << 20)
	for n := range 20_000 {
		c.fill(hashNumbered(n), make([]byte, 1000))
		if !c.has(hashNumbered(0)) {
			t.Fatalf("a popular value was evicted by %d others", n)
		}
	}
	if c.has(hashNumbered(1)) || !c.has(hashNumbered(19_999)) {
		t.Error("not the oldest was pushed out")
	}
	// One large value must not evict all others.
	before, _ := c.Usage()
	c.fill(hashNumbered(30_000), make([]byte, 1<<15))
	if after, _ := c.Usage(); after != before || c.has(hashNumbered(30_000)) {
		t.Errorf("%d values, %d after a large one", before, after)
	}
}

// TestCacheConsistent: many goroutines read, change and invalidate. A value is never older than
// the last invalidation.
func TestCacheConsistent(t *testing.T) {
	t.Parallel()
	const items = 64
	var mu sync.Mutex
	var truth [items]int // versions, instead of an index
	read := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return truth[n]
	}
	c := New(1<<20, func(int) int64 { return 8 })
	var invalidated [items]int // no older version may be found
	var invalidatedMu sync.RWMutex
	var group sync.WaitGroup
	for seed := range 6 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(seed), 0))
			for range 3000 {
				n := random.IntN(items)
				if random.IntN(4) == 0 { // a change, and its invalidation
					mu.Lock()
					truth[n]++
					version := truth[n]
					mu.Unlock()
					c.Forget(hashNumbered(n))
					invalidatedMu.Lock()
					invalidated[n] = max(invalidated[n], version)
					invalidatedMu.Unlock()
					continue
				}
				invalidatedMu.RLock()
				least := invalidated[n]
				invalidatedMu.RUnlock()
				version, ok, generation := c.Get(hashNumbered(n))
				if !ok {
					version = read(n)
					c.Put(hashNumbered(n), version, generation)
				}
				if version < least {
					t.Errorf("found version %d after the invalidation of %d", version, least)
					return
				}
			}
		})
	}
	group.Wait()
}
