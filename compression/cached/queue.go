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

// queue holds each task once, from when it is added until it is done.
type queue struct {
	tasks chan task

	mu       sync.Mutex
	known    map[task]struct{} // waiting, or under way
	failures *lru.LRU[task, failure]
	settled  *lru.LRU[task, time.Time] // have nothing to do until then
}

// failure is when a task may be tried again, after so many times in vain.
type failure struct {
	times int
	until time.Time
}

const (
	// maxQueued bounds the tasks that wait. Others come again when their item
	// is asked for again.
	maxQueued = 10_000
	// maxRemembered bounds the tasks that are known not to be worth a try now.
	maxRemembered = 10_000
	// settledFor is when to look again whether an item needs a file at all.
	settledFor = time.Hour
)

// retry is how soon a task that has failed may be tried again.
var retry = pace.Backoff{First: time.Minute, Last: 24 * time.Hour}

func newQueue() *queue {
	failures, err1 := lru.NewLRU[task, failure](maxRemembered, nil)
	settled, err2 := lru.NewLRU[task, time.Time](maxRemembered, nil)
	if err := errors.Join(err1, err2); err != nil {
		panic(err) // only of a size that is not positive
	}
	return &queue{tasks: make(chan task, maxQueued), known: make(map[task]struct{}), failures: failures, settled: settled}
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
	if until, ok := q.settled.Peek(t); ok && time.Now().Before(until) {
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

// settle ends a task that has nothing to do, and keeps it from coming again
// each time that its item is asked for.
func (q *queue) settle(t task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.known, t)
	q.failures.Remove(t)
	q.settled.Add(t, time.Now().Add(settledFor))
}

func (q *queue) counts() (waiting, failing int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.tasks), q.failures.Len()
}
