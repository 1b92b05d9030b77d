// Package itemcache caches values that are derived from items, and invalidates those of items
// that have changed.
package itemcache

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/narinfo"
)

// Cache keeps the values of recently requested items, bounded in bytes. It has parts with a
// mutex each, which reduces contention.
type Cache[V any] struct {
	parts [cacheParts]cachePart[V]
	cost  func(V) int64 // memory of an entry, in bytes
}

const (
	cacheParts = 16
	// cacheOverhead is the memory of an entry beside its value: list element and map entry.
	cacheOverhead = 200
)

type cachePart[V any] struct {
	mu      sync.Mutex
	kept    *simplelru.LRU[narinfo.PathHash, V]
	size    int64
	maximum int64
	// changes counts invalidations. Put refuses a value that was read before one.
	changes   uint64
	suspended bool
}

// Generation counts the invalidations that Get has seen.
type Generation uint64

// New makes a cache of at most maximum bytes. cost returns the memory of a value, in bytes.
func New[V any](maximum int64, cost func(V) int64) *Cache[V] {
	c := &Cache[V]{cost: func(value V) int64 { return cost(value) + cacheOverhead }}
	for i := range c.parts {
		part := &c.parts[i]
		part.maximum = maximum / cacheParts
		// NewLRU fails only for a size below one.
		part.kept, _ = simplelru.NewLRU(int(part.maximum/cacheOverhead)+1, func(_ narinfo.PathHash, value V) {
			part.size -= c.cost(value)
		})
	}
	return c
}

func (c *Cache[V]) part(hash narinfo.PathHash) *cachePart[V] {
	return &c.parts[hash[0]%cacheParts]
}

// Get returns the value, which must not be modified, or the generation for Put.
func (c *Cache[V]) Get(hash narinfo.PathHash) (value V, ok bool, g Generation) {
	part := c.part(hash)
	part.mu.Lock()
	defer part.mu.Unlock()
	value, ok = part.kept.Get(hash)
	return value, ok, Generation(part.changes)
}

// Put keeps a value that was read after Get returned g, unless the item may have changed
// since. It reports whether the value was kept.
func (c *Cache[V]) Put(hash narinfo.PathHash, value V, g Generation) bool {
	part := c.part(hash)
	cost := c.cost(value)
	if cost > part.maximum/8 {
		return false // it would evict too many others
	}
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.suspended || part.changes != uint64(g) || part.kept.Contains(hash) {
		return false
	}
	part.size += cost
	part.kept.Add(hash, value)
	for part.size > part.maximum {
		part.kept.RemoveOldest()
	}
	return true
}

// Forget invalidates the value of an item that has changed.
func (c *Cache[V]) Forget(hash narinfo.PathHash) {
	part := c.part(hash)
	part.mu.Lock()
	defer part.mu.Unlock()
	part.changes++
	part.kept.Remove(hash)
}

// ForgetAll invalidates all values.
func (c *Cache[V]) ForgetAll() { c.all(func(*cachePart[V]) {}) }

// Suspend invalidates all values, and keeps none until Resume.
func (c *Cache[V]) Suspend() { c.all(func(p *cachePart[V]) { p.suspended = true }) }

// Resume ends Suspend.
func (c *Cache[V]) Resume() { c.all(func(p *cachePart[V]) { p.suspended = false }) }

func (c *Cache[V]) all(f func(*cachePart[V])) {
	for i := range c.parts {
		part := &c.parts[i]
		part.mu.Lock()
		part.changes++
		part.kept.Purge()
		f(part)
		part.mu.Unlock()
	}
}

// Usage returns the number of values, and their memory in bytes.
func (c *Cache[V]) Usage() (count int, size int64) {
	for i := range c.parts {
		part := &c.parts[i]
		part.mu.Lock()
		count += part.kept.Len()
		size += part.size
		part.mu.Unlock()
	}
	return count, size
}
