package cached

import (
	"errors"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/internal/pace"
	"nar-herder/narinfo"
)

// task is a file to make.
type task struct {
	hash narinfo.PathHash
	kind *kind
}

// queue holds each task once, until it is done.
type queue struct {
	tasks chan task

	mu       sync.Mutex
	known    map[task]struct{}  // waiting or running
	running  map[task]time.Time // since when
	failures *lru.LRU[task, failure]
	useless  *lru.LRU[task, time.Time] // tasks with nothing to do, and until when they are ignored
}

// failure counts the failures of a task in a row, and says when to retry it.
type failure struct {
	times int
	until time.Time
}

const (
	// maxQueued bounds the waiting tasks. Others are added at the next request for their item.
	maxQueued = 10_000
	// maxRemembered bounds the failed tasks, and those with nothing to do.
	maxRemembered = 10_000
	// uselessFor is how long a task with nothing to do is not checked again.
	uselessFor = time.Hour
)

// retry is how long a failed task waits.
var retry = pace.Backoff{First: time.Minute, Last: 24 * time.Hour}

func newQueue() *queue {
	failures, err1 := lru.NewLRU[task, failure](maxRemembered, nil)
	useless, err2 := lru.NewLRU[task, time.Time](maxRemembered, nil)
	if err := errors.Join(err1, err2); err != nil {
		panic(err) // NewLRU fails only for a size below one
	}
	return &queue{tasks: make(chan task, maxQueued), known: make(map[task]struct{}), running: make(map[task]time.Time), failures: failures, useless: useless}
}

// add queues the task, unless it is known, has failed recently, or had nothing to do. It returns
// false if the queue is full.
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

// begin records that a task runs, until end is called.
func (q *queue) begin(t task, now time.Time) (end func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.running[t] = now
	return func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		delete(q.running, t)
	}
}

// done ends a task, and returns when a failed one may be retried.
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

// resolve ends a task with nothing to do. add ignores it for uselessFor.
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
