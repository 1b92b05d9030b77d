package upstream

import (
	"container/heap"
	"context"
	"net/netip"
	"runtime"
	"sync"
)

// mostUnsettled bounds the texts of narinfos that wait for a [settler], in bytes. Each connection may
// add one more.
const mostUnsettled = 8 << 20

// backlog is how many items wait when verifying has become slower than reading.
const backlog = 64

// settler settles items that have a reply in the order of their places. Connections don't wait for
// it: verifying a signature takes longer than reading a narinfo, and answers came up to 40 ms later
// when connections did both, probably because their buffers were full.
type settler struct {
	mu      sync.Mutex
	room    sync.Cond // of mu: bytes has fallen
	queue   unsettled
	bytes   int
	running int
	clients map[netip.Prefix]*share // that wait for answers
	now     uint64                  // the place after the highest that was decided
}

// share is what one client waits for.
type share struct {
	questions int
	next      uint64 // place
}

type clientKey struct{}

// WithClient returns a context for [Set.Ask] with the network of the client that waits for the
// answers. Clients take turns; those without a network are one.
func WithClient(ctx context.Context, client netip.Prefix) context.Context {
	return context.WithValue(ctx, clientKey{}, client)
}

func clientOf(ctx context.Context) netip.Prefix {
	client, _ := ctx.Value(clientKey{}).(netip.Prefix)
	return client
}

func newSettler() *settler {
	s := &settler{clients: make(map[netip.Prefix]*share)}
	s.room.L = &s.mu
	return s
}

// reserve returns the place of the first of n items in the order of all, until release. Those of one
// client are in the order of its questions, in which it reads the answers. They begin with what is
// decided now, so that they come in turn with those of others that were asked for before.
func (s *settler) reserve(client netip.Prefix, n int) (place uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[client]
	if c == nil {
		c = new(share)
		s.clients[client] = c
	}
	place = max(s.now, c.next)
	c.questions++
	c.next = place + uint64(n)
	return place
}

// release ends a question of a client.
func (s *settler) release(client netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.clients[client]
	if c.questions--; c.questions == 0 {
		delete(s.clients, client)
	}
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
	// One processor is left to read and write, until most answers have been read.
	most := max(1, runtime.GOMAXPROCS(0)-1)
	if len(s.queue) > backlog {
		most++
	}
	if s.running < most {
		s.running++
		go s.run()
	}
}

// run settles items until none is left.
func (s *settler) run() {
	var now uint64
	for {
		s.mu.Lock()
		s.now = max(s.now, now)
		if len(s.queue) == 0 {
			s.running--
			s.mu.Unlock()
			return
		}
		t := heap.Pop(&s.queue).(turn)
		s.bytes -= t.size
		s.mu.Unlock()
		s.room.Broadcast()
		if t.question.settle(t.item) {
			now = t.place + 1
		}
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
