package deletion

import (
	"slices"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// maxLatest is how many items [Latest] has.
const maxLatest = 10

// Latest has the items that lost their nars last. It is safe for concurrent use.
type Latest struct {
	mu    sync.Mutex
	items []Evicted // the newest first
}

// Evicted is an item that has lost its nars.
type Evicted struct {
	Path  narinfo.StorePath
	Bytes int64
	At    time.Time
}

// Add adds items.
func (l *Latest) Add(at time.Time, items ...*storage.Item) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, item := range items[max(0, len(items)-maxLatest):] {
		l.items = slices.Insert(l.items, 0, Evicted{item.Narinfo.StorePath, item.StoredBytes(), at})
	}
	l.items = l.items[:min(len(l.items), maxLatest)]
}

// Items returns the items, the newest first.
func (l *Latest) Items() []Evicted {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.items)
}
