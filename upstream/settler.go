package upstream

import (
	"runtime"
	"sync"

	"nar-herder/upstream/turns"
)

// mostUnsettled bounds the texts of narinfos that wait for a [settler], in bytes. Each connection may
// add one more.
const mostUnsettled = 8 << 20

// backlog is how many items wait when verifying has become slower than reading.
const backlog = 64

// settler settles items that have a reply: those of a client in the order of its questions, in which
// it reads the answers. Connections don't wait for it: verifying a signature takes longer than reading
// a narinfo, and answers came up to 40 ms later when connections did both, probably because their
// buffers were full.
type settler struct {
	mu      sync.Mutex
	room    sync.Cond // of mu: bytes has fallen
	queue   turns.Queue[turn]
	bytes   int
	running int
}

func newSettler() *settler {
	s := new(settler)
	s.room.L = &s.mu
	return s
}

// add settles an item soon. It waits while the replies that wait are too large.
func (s *settler) add(t turn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.bytes > mostUnsettled {
		s.room.Wait()
	}
	s.bytes += t.size
	s.queue.Push(t)
	// One processor is left to read and write, until most answers have been read.
	most := max(1, runtime.GOMAXPROCS(0)-1)
	if s.queue.Len() > backlog {
		most++
	}
	if s.running < most {
		s.running++
		go s.run()
	}
}

// run settles items until none is left.
func (s *settler) run() {
	for {
		s.mu.Lock()
		t, ok := s.queue.Pop()
		if !ok {
			s.running--
			s.mu.Unlock()
			return
		}
		s.bytes -= t.size
		s.mu.Unlock()
		s.room.Broadcast()
		t.question.settle(t.item)
	}
}

// turn is an item of a question that waits for a settler.
type turn struct {
	question *question
	item     int
	size     int // of the reply
}

// Place is for [turns.Queue].
func (t turn) Place() turns.Place { return t.question.place(t.item) }
