package httpapi

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/narinfo"
)

// cache keeps what was asked for lately of items, bounded in bytes, in parts so
// that cores don't wait for each other.
type cache[V any] struct {
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
	// and comes after it is not kept; see ticket.
	changes   uint64
	suspended bool
}

// ticket is the state of things when a value was not found.
type ticket uint64

func newCache[V any](maximum int64, cost func(V) int64) *cache[V] {
	c := &cache[V]{cost: func(value V) int64 { return cost(value) + cacheOverhead }}
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

func (c *cache[V]) part(hash narinfo.PathHash) *cachePart[V] {
	return &c.parts[hash[0]%cacheParts]
}

// get returns the value, which must not be changed, or a ticket for putting it.
func (c *cache[V]) get(hash narinfo.PathHash) (value V, ok bool, t ticket) {
	part := c.part(hash)
	part.mu.Lock()
	defer part.mu.Unlock()
	value, ok = part.kept.Get(hash)
	return value, ok, ticket(part.changes)
}

// put keeps a value that was read after get gave the ticket, and reports whether it did.
func (c *cache[V]) put(hash narinfo.PathHash, value V, t ticket) bool {
	part := c.part(hash)
	cost := c.cost(value)
	if cost > part.maximum/8 {
		return false // it would push out too many others
	}
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.suspended || part.changes != uint64(t) || part.kept.Contains(hash) {
		return false
	}
	part.size += cost
	part.kept.Add(hash, value)
	for part.size > part.maximum {
		part.kept.RemoveOldest()
	}
	return true
}

// forget drops the value of an item that has changed.
func (c *cache[V]) forget(hash narinfo.PathHash) {
	part := c.part(hash)
	part.mu.Lock()
	defer part.mu.Unlock()
	part.changes++
	part.kept.Remove(hash)
}

func (c *cache[V]) forgetAll() { c.all(func(*cachePart[V]) {}) }

// suspend drops all, and keeps nothing until resume.
func (c *cache[V]) suspend() { c.all(func(p *cachePart[V]) { p.suspended = true }) }
func (c *cache[V]) resume()  { c.all(func(p *cachePart[V]) { p.suspended = false }) }

func (c *cache[V]) all(f func(*cachePart[V])) {
	for i := range c.parts {
		part := &c.parts[i]
		part.mu.Lock()
		part.changes++
		part.kept.Purge()
		f(part)
		part.mu.Unlock()
	}
}

// usage returns how many values are kept, and the bytes they take.
func (c *cache[V]) usage() (count int, size int64) {
	for i := range c.parts {
		part := &c.parts[i]
		part.mu.Lock()
		count += part.kept.Len()
		size += part.size
		part.mu.Unlock()
	}
	return count, size
}
