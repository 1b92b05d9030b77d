package httpapi

import (
	"encoding/binary"
	"math/rand/v2"
	"sync"
	"testing"

	"nar-herder/narinfo"
)

// numbered returns a hash; those of one part differ by cacheParts.
func numbered(n int) (hash narinfo.PathHash) {
	binary.LittleEndian.PutUint64(hash[:], uint64(n))
	return hash
}

func newBodyCache(maximum int64) *cache[[]byte] {
	return newCache(maximum, func(body []byte) int64 { return int64(cap(body)) })
}

func (c *cache[V]) has(hash narinfo.PathHash) bool {
	_, ok, _ := c.get(hash)
	return ok
}

// fill puts a value in, as a request does that finds none.
func (c *cache[V]) fill(hash narinfo.PathHash, value V) {
	_, _, ticket := c.get(hash)
	c.put(hash, value, ticket)
}

func TestCacheTickets(t *testing.T) {
	t.Parallel()
	here, samePart, otherPart := numbered(0), numbered(cacheParts), numbered(1)
	for name, test := range map[string]struct {
		meanwhile func(*cache[[]byte])
		kept      bool
	}{
		"nothing":                      {func(c *cache[[]byte]) {}, true},
		"the item changes":             {func(c *cache[[]byte]) { c.forget(here) }, false},
		"the item changes twice":       {func(c *cache[[]byte]) { c.forget(here); c.forget(here) }, false},
		"another of the part changes":  {func(c *cache[[]byte]) { c.forget(samePart) }, false},
		"one of another part changes":  {func(c *cache[[]byte]) { c.forget(otherPart) }, true},
		"all are forgotten":            {func(c *cache[[]byte]) { c.forgetAll() }, false},
		"nothing may be kept":          {func(c *cache[[]byte]) { c.suspend() }, false},
		"nothing might be kept":        {func(c *cache[[]byte]) { c.suspend(); c.resume() }, false},
		"others come":                  {func(c *cache[[]byte]) { c.fill(samePart, []byte("x")) }, true},
		"resumed without a suspension": {func(c *cache[[]byte]) { c.resume() }, false},
	} {
		c := newBodyCache(1 << 20)
		_, ok, ticket := c.get(here)
		if ok {
			t.Fatal("found in an empty cache")
		}
		test.meanwhile(c)
		c.put(here, []byte("old"), ticket)
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

// TestCachePutTwice has two requests that read the same item at once.
func TestCachePutTwice(t *testing.T) {
	t.Parallel()
	c := newBodyCache(1 << 20)
	_, _, ticket := c.get(numbered(0))
	for range 3 {
		c.put(numbered(0), make([]byte, 100), ticket)
	}
	if count, size := c.usage(); count != 1 || size != 100+cacheOverhead {
		t.Errorf("%d values of %d bytes", count, size)
	}
	c.forget(numbered(0))
	c.forget(numbered(0))
	if count, size := c.usage(); count != 0 || size != 0 {
		t.Errorf("%d values of %d bytes", count, size)
	}
}

// TestCacheBounds fills caches with values of all sizes.
func TestCacheBounds(t *testing.T) {
	t.Parallel()
	for _, maximum := range []int64{0, 1, 1000, cacheParts * cacheOverhead, 100_000, 1 << 20} {
		c := newBodyCache(maximum)
		random := rand.New(rand.NewPCG(1, uint64(maximum)))
		for n := range 5_000 { // ten times what fits into the largest
			body := make([]byte, random.IntN(5000))
			if n%3 == 0 {
				body = body[:len(body)/2] // the rest is taken as well
			}
			c.fill(numbered(n), body)
			if n%100 == 0 {
				c.forget(numbered(random.IntN(n + 1)))
			}
			if count, size := c.usage(); size > maximum || size < int64(count)*cacheOverhead {
				t.Fatalf("%d bytes at most: %d values of %d bytes", maximum, count, size)
			}
		}
		count, size := c.usage()
		if maximum >= 100_000 && (count == 0 || size < maximum/2) {
			t.Errorf("%d bytes at most: only %d values of %d bytes", maximum, count, size)
		}
		c.forgetAll()
		if count, size := c.usage(); count != 0 || size != 0 {
			t.Errorf("%d bytes at most: %d values of %d bytes after all were forgotten", maximum, count, size)
		}
	}
}

// TestCacheKeepsTheLatest has what is asked for stay.
func TestCacheKeepsTheLatest(t *testing.T) {
	t.Parallel()
	c := newBodyCache(1 << 20)
	for n := range 20_000 {
		c.fill(numbered(n), make([]byte, 1000))
		if !c.has(numbered(0)) {
			t.Fatalf("one that is asked for all the time was pushed out by %d others", n)
		}
	}
	if c.has(numbered(1)) || !c.has(numbered(19_999)) {
		t.Error("not the oldest was pushed out")
	}
	// One large value is not worth all the others.
	before, _ := c.usage()
	c.fill(numbered(30_000), make([]byte, 1<<15))
	if after, _ := c.usage(); after != before || c.has(numbered(30_000)) {
		t.Errorf("%d values, %d after a large one", before, after)
	}
}

// TestCacheAgrees has many goroutines read, change and forget: what is found is
// never older than what was there when the change was told.
func TestCacheAgrees(t *testing.T) {
	t.Parallel()
	const items = 64
	var mu sync.Mutex
	var truth [items]int // versions, in the place of an index
	read := func(n int) int {
		mu.Lock()
		defer mu.Unlock()
		return truth[n]
	}
	c := newCache(1<<20, func(int) int64 { return 8 })
	var told [items]int // versions that nothing older than may be found
	var toldMu sync.RWMutex
	var group sync.WaitGroup
	for seed := range 6 {
		group.Go(func() {
			random := rand.New(rand.NewPCG(uint64(seed), 0))
			for range 3000 {
				n := random.IntN(items)
				if random.IntN(4) == 0 { // a change, which is then told
					mu.Lock()
					truth[n]++
					version := truth[n]
					mu.Unlock()
					c.forget(numbered(n))
					toldMu.Lock()
					told[n] = max(told[n], version)
					toldMu.Unlock()
					continue
				}
				toldMu.RLock()
				least := told[n]
				toldMu.RUnlock()
				version, ok, ticket := c.get(numbered(n))
				if !ok {
					version = read(n)
					c.put(numbered(n), version, ticket)
				}
				if version < least {
					t.Errorf("version %d found, %d was told", version, least)
					return
				}
			}
		})
	}
	group.Wait()
}
