package cached

import (
	"errors"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/internal/pace"
	"nar-herder/narinfo"
)

// task is a file to be made.
type task struct {
	hash narinfo.PathHash
	kind *kind
}

// queue holds each task once, until it is done.
type queue struct {
	tasks chan task

	mu       sync.Mutex
	known    map[task]struct{} // waiting, or under way
	failures *lru.LRU[task, failure]
	useless  *lru.LRU[task, time.Time] // have nothing to do until then
}

// failure is how often a task has failed, and when it may be tried again.
type failure struct {
	times int
	until time.Time
}

const (
	// maxQueued bounds the waiting tasks. Others are added at the next request for their item.
	maxQueued = 10_000
	// maxRemembered bounds the tasks that are remembered as useless for now.
	maxRemembered = 10_000
	// uselessFor is how long an item that needs no file is not checked again.
	uselessFor = time.Hour
)

// retry is how long a failed task waits.
var retry = pace.Backoff{First: time.Minute, Last: 24 * time.Hour}

func newQueue() *queue {
	failures, err1 := lru.NewLRU[task, failure](maxRemembered, nil)
	useless, err2 := lru.NewLRU[task, time.Time](maxRemembered, nil)
	if err := errors.Join(err1, err2); err != nil {
		panic(err) // only of a size that is not positive
	}
	return &queue{tasks: make(chan task, maxQueued), known: make(map[task]struct{}), failures: failures, useless: useless}
}

// add queues the task, unless it is there already, or has failed a short while
// ago. It returns false when the queue is full.
func (q *queue) add(t task) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if _, ok := q.known[t]; ok {
		return true
	}
	if f, ok := q.failures.Peek(t); ok && time.Now().Before(f.until) {
		return true
	}
	if until, ok := q.useless.Peek(t); ok && time.Now().Before(until) {
		return true
	}
	select {
	case q.tasks <- t:
		q.known[t] = struct{}{}
		return true
	default:
		return false
	}
}

// done ends a task, and returns when it may be tried again: the zero time for
// one that did not fail.
func (q *queue) done(t task, failed bool) (again time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.known, t)
	if !failed {
		q.failures.Remove(t)
		return time.Time{}
	}
	f, _ := q.failures.Get(t)
	f.times++
	f.until = time.Now().Add(retry.After(f.times))
	q.failures.Add(t, f)
	return f.until
}

// resolve ends a task that has nothing to do, and keeps it from being added again at each
// request for its item.
func (q *queue) resolve(t task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.known, t)
	q.failures.Remove(t)
	q.useless.Add(t, time.Now().Add(uselessFor))
}

func (q *queue) counts() (waiting, failing int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.tasks), q.failures.Len()
}
