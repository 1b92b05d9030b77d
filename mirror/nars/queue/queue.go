// Package queue orders the items to fetch nars for: announced items first, the latest first,
// then failed ones, once they are due.
package queue

import (
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/narinfo"
)

const (
	// maxWanted bounds the announced items, and maxRetries the failed ones. Others are
	// forgotten, which [Queue.Forgotten] reports.
	maxWanted  = 10_000
	maxRetries = 10_000
)

// Longest is the longest wait that [Queue.Next] returns.
const Longest = time.Hour

// retry is a failed item.
type retry struct {
	at       time.Time
	failures int // in a row
}

// Queue has the items. Its methods may be called from several goroutines at once.
type Queue struct {
	mu       sync.Mutex
	wanted   []narinfo.PathHash // the latest at the end
	isWanted map[narinfo.PathHash]struct{}
	retries  *lru.LRU[narinfo.PathHash, retry]
	// nextRetry is when the first retry is due; zero for none.
	nextRetry time.Time
	// lostWanted and lostRetry report that announced or failed items were forgotten.
	lostWanted, lostRetry bool
}

// New makes an empty queue.
func New() *Queue {
	retries, err := lru.NewLRU[narinfo.PathHash, retry](maxRetries, nil)
	if err != nil {
		panic(err) // the size is positive
	}
	return &Queue{isWanted: make(map[narinfo.PathHash]struct{}), retries: retries}
}

// Add adds an announced item.
func (q *Queue) Add(hash narinfo.PathHash) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, known := q.isWanted[hash]; known {
		return
	}
	if len(q.wanted) >= maxWanted {
		// Half of them at once, so that it is seldom.
		for _, old := range q.wanted[:maxWanted/2] {
			delete(q.isWanted, old)
		}
		q.wanted = append(q.wanted[:0], q.wanted[maxWanted/2:]...)
		q.lostWanted = true
	}
	q.wanted = append(q.wanted, hash)
	q.isWanted[hash] = struct{}{}
}

// Retry records a failure of an item. pause returns when it is due again, from the number
// of its earlier failures in a row. Retry returns the time when it is due.
func (q *Queue) Retry(hash narinfo.PathHash, now time.Time, pause func(failures int) time.Duration) time.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	entry, _ := q.retries.Peek(hash)
	entry = retry{now.Add(pause(entry.failures)), entry.failures + 1}
	if q.retries.Add(hash, entry) {
		q.lostRetry = true
	}
	if q.nextRetry.IsZero() || entry.at.Before(q.nextRetry) {
		q.nextRetry = entry.at
	}
	return entry.at
}

// Done forgets the failures of an item.
func (q *Queue) Done(hash narinfo.PathHash) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.retries.Remove(hash)
}

// Next returns the next item, or how long to wait for one.
func (q *Queue) Next(now time.Time) (hash narinfo.PathHash, wait time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if last := len(q.wanted) - 1; last >= 0 {
		hash = q.wanted[last]
		q.wanted = q.wanted[:last]
		delete(q.isWanted, hash)
		return hash, 0
	}
	if q.nextRetry.IsZero() {
		return hash, Longest
	}
	if wait := q.nextRetry.Sub(now); wait > 0 {
		return hash, min(wait, Longest)
	}
	q.nextRetry = time.Time{}
	for _, hash := range q.retries.Keys() {
		entry, _ := q.retries.Peek(hash)
		if !entry.at.After(now) {
			// It is not due again before the outcome is known.
			entry.at = now.Add(Longest)
			q.retries.Add(hash, entry)
			q.nextRetry = now // another may be due
			return hash, 0
		}
		if q.nextRetry.IsZero() || entry.at.Before(q.nextRetry) {
			q.nextRetry = entry.at
		}
	}
	if q.nextRetry.IsZero() {
		return hash, Longest
	}
	return hash, min(q.nextRetry.Sub(now), Longest)
}

// IsWaiting reports whether an item has failed and is not due yet.
func (q *Queue) IsWaiting(hash narinfo.PathHash, now time.Time) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	entry, ok := q.retries.Peek(hash)
	return ok && now.Before(entry.at)
}

// Forgotten reports whether announced or failed items were forgotten since
// [Queue.ResetForgotten]: only a pass over all items finds them again.
func (q *Queue) Forgotten() (wanted, retries bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.lostWanted, q.lostRetry
}

// ResetForgotten is called when a pass begins.
func (q *Queue) ResetForgotten() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.lostWanted, q.lostRetry = false, false
}

// ForgetRetries forgets all failed items, as if there had been too many.
func (q *Queue) ForgetRetries() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.retries.Purge()
	q.lostRetry = true
}
