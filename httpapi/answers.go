package httpapi

import (
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/narinfo"
)

// answers keeps the bodies of narinfos that were asked for lately, bounded in
// bytes, in parts so that cores don't wait for each other.
type answers struct {
	parts [answerParts]answerPart
}

const (
	answerParts = 16
	// answerOverhead is what a body takes beyond its bytes: list element, map
	// entry and slice header.
	answerOverhead = 200
)

type answerPart struct {
	mu      sync.Mutex
	kept    *simplelru.LRU[narinfo.PathHash, []byte]
	size    int64
	maximum int64
	// changes counts what was forgotten. A body that was read before a change
	// and comes after it is not kept; see ticket.
	changes   uint64
	suspended bool
}

// ticket is the state of things when a body was not found.
type ticket uint64

func newAnswers(maximum int64) *answers {
	a := new(answers)
	for i := range a.parts {
		part := &a.parts[i]
		part.maximum = maximum / answerParts
		// The number of entries is bounded by their overhead.
		part.kept, _ = simplelru.NewLRU(int(part.maximum/answerOverhead)+1, func(_ narinfo.PathHash, body []byte) {
			part.size -= int64(cap(body)) + answerOverhead
		})
	}
	return a
}

func (a *answers) part(hash narinfo.PathHash) *answerPart {
	return &a.parts[hash[0]%answerParts]
}

// get returns the body, which must not be changed, or nil and a ticket for
// putting it.
func (a *answers) get(hash narinfo.PathHash) ([]byte, ticket) {
	part := a.part(hash)
	part.mu.Lock()
	defer part.mu.Unlock()
	body, _ := part.kept.Get(hash)
	return body, ticket(part.changes)
}

// put keeps a body that was read after get gave the ticket.
func (a *answers) put(hash narinfo.PathHash, body []byte, t ticket) {
	part := a.part(hash)
	cost := int64(cap(body)) + answerOverhead
	if cost > part.maximum/8 {
		return // it would push out too many others
	}
	part.mu.Lock()
	defer part.mu.Unlock()
	if part.suspended || part.changes != uint64(t) || part.kept.Contains(hash) {
		return
	}
	part.size += cost
	part.kept.Add(hash, body)
	for part.size > part.maximum {
		part.kept.RemoveOldest()
	}
}

// forget drops the body of an item that has changed.
func (a *answers) forget(hash narinfo.PathHash) {
	part := a.part(hash)
	part.mu.Lock()
	defer part.mu.Unlock()
	part.changes++
	part.kept.Remove(hash)
}

func (a *answers) forgetAll() { a.all(func(*answerPart) {}) }

// suspend drops all, and keeps nothing until resume.
func (a *answers) suspend() { a.all(func(p *answerPart) { p.suspended = true }) }
func (a *answers) resume()  { a.all(func(p *answerPart) { p.suspended = false }) }

func (a *answers) all(f func(*answerPart)) {
	for i := range a.parts {
		part := &a.parts[i]
		part.mu.Lock()
		part.changes++
		part.kept.Purge()
		f(part)
		part.mu.Unlock()
	}
}

// usage returns how many bodies are kept, and the bytes they take.
func (a *answers) usage() (count int, size int64) {
	for i := range a.parts {
		part := &a.parts[i]
		part.mu.Lock()
		count += part.kept.Len()
		size += part.size
		part.mu.Unlock()
	}
	return count, size
}
