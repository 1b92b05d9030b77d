package upstream

import (
	"container/heap"
	"runtime"
	"sync"
)

// mostUnsettled bounds the narinfos that wait for a [settler], in bytes.
const mostUnsettled = 8 << 20

// settler settles items that have a reply, those that were asked for first before others: a client
// reads the answers in that order. Connections don't wait for it, because verifying a signature
// takes longer than reading a narinfo, and TCP stalls when it fills the buffers of a connection.
type settler struct {
	mu      sync.Mutex
	room    sync.Cond // of mu: bytes has fallen
	queue   unsettled
	bytes   int
	running int
	asked   uint64 // items
}

func newSettler() *settler {
	s := new(settler)
	s.room.L = &s.mu
	return s
}

// reserve returns the place of the first of n new items in the order of all.
func (s *settler) reserve(n int) (place uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	place = s.asked
	s.asked += uint64(n)
	return place
}

// add settles an item soon. It waits while the replies that wait are too large.
func (s *settler) add(t turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytes > mostUnsettled {
		s.room.Wait()
	}
	s.bytes += t.size
	heap.Push(&s.queue, t)
	// One processor is left to read and write.
	if s.running < max(1, runtime.GOMAXPROCS(0)-1) {
		s.running++
		go s.run()
	}
}

// run settles items until none is left.
func (s *settler) run() {
	for {
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.running--
			s.mu.Unlock()
			return
		}
		t := heap.Pop(&s.queue).(turn)
		s.bytes -= t.size
		s.mu.Unlock()
		s.room.Broadcast()
		t.question.settle(t.item)
	}
}

// turn is an item of a question that waits for a settler.
type turn struct {
	place    uint64
	question *question
	item     int
	size     int // of the reply
}

// unsettled implements [heap.Interface].
type unsettled []turn

func (u unsettled) Len() int           { return len(u) }
func (u unsettled) Less(i, j int) bool { return u[i].place < u[j].place }
func (u unsettled) Swap(i, j int)      { u[i], u[j] = u[j], u[i] }
func (u *unsettled) Push(t any)        { *u = append(*u, t.(turn)) }

func (u *unsettled) Pop() any {
	last := len(*u) - 1
	t := (*u)[last]
	(*u)[last] = turn{}
	*u = (*u)[:last]
	return t
}
