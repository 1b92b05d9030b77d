// Package itemcache keeps values that are made of items in memory, and drops those of items
// that have changed.
package itemcache

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/narinfo"
)

// Cache keeps what was asked for lately of items, bounded in bytes, in parts so
// that cores don't wait for each other.
type Cache[V any] struct {
	parts [cacheParts]cachePart[V]
	cost  func(V) int64 // bytes that a value takes
}

const (
	cacheParts = 16
	// cacheOverhead is what an entry takes beyond its value: list element and
	// map entry.
	cacheOverhead = 200
)

type cachePart[V any] struct {
	mu      sync.Mutex
	kept    *simplelru.LRU[narinfo.PathHash, V]
	size    int64
	maximum int64
	// changes counts what was forgotten. A value that was read before a change
	// and comes after it is not kept; see Generation.
	changes   uint64
	suspended bool
}

// Generation is the state of things when a value was not found.
type Generation uint64

func New[V any](maximum int64, cost func(V) int64) *Cache[V] {
	c := &Cache[V]{cost: func(value V) int64 { return cost(value) + cacheOverhead }}
	for i := range c.parts {
		part := &c.parts[i]
		part.maximum = maximum / cacheParts
		// The number of entries is bounded by their overhead. It is never
		// below one, which is all that can be wrong with it.
		part.kept, _ = simplelru.NewLRU(int(part.maximum/cacheOverhead)+1, func(_ narinfo.PathHash, value V) {
			part.size -= c.cost(value)
		})
	}
	return c
}

func (c *Cache[V]) part(hash narinfo.PathHash) *cachePart[V] {
	return &c.parts[hash[0]%cacheParts]
}

// Get returns the value, which must not be changed, or the generation to put it with.
func (c *Cache[V]) Get(hash narinfo.PathHash) (value V, ok bool, g Generation) {
	part := c.part(hash)
	part.mu.Lock()
	defer part.mu.Unlock()
	value, ok = part.kept.Get(hash)
	return value, ok, Generation(part.changes)
}

// Put keeps a value that was read in the generation of Get, and reports whether it did.
func (c *Cache[V]) Put(hash narinfo.PathHash, value V, g Generation) bool {
	part := c.part(hash)
	cost := c.cost(value)
	if cost > part.maximum/8 {
		return false // it would push out too many others
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

// Forget drops the value of an item that has changed.
func (c *Cache[V]) Forget(hash narinfo.PathHash) {
	part := c.part(hash)
	part.mu.Lock()
	defer part.mu.Unlock()
	part.changes++
	part.kept.Remove(hash)
}

func (c *Cache[V]) ForgetAll() { c.all(func(*cachePart[V]) {}) }

// Suspend drops all, and keeps nothing until resume.
func (c *Cache[V]) Suspend() { c.all(func(p *cachePart[V]) { p.suspended = true }) }
func (c *Cache[V]) Resume()  { c.all(func(p *cachePart[V]) { p.suspended = false }) }

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

// Usage returns how many values are kept, and the bytes they take.
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
