package eventloop

import (
	"runtime"
	"sync"
)

// Pool bounds how many connections do one kind of work at a time outside the loop. The
// others wait in its queue, and not in that of the runtime, in which the loop would wait for a
// processor behind all of them.
type Pool struct {
	mu    sync.Mutex
	free  int // how many more connections may run
	queue []*Conn
}

// NewPool makes a pool for width connections at a time.
func NewPool(width int) *Pool { return &Pool{free: width} }

// Enter waits until the pool has room for the connection. The connection stays in the pool until
// it waits to read, is queued for the loop, enters a pool again, or leaves. Call it once before
// each short task on a processor or disk.
func (c *Conn) Enter(p *Pool) {
	if c.yield != nil {
		c.pool = p
		c.yield(enterPool)
	}
}

func (p *Pool) enter(c *Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.free == 0 {
		p.queue = append(p.queue, c)
		return
	}
	p.free--
	go p.run(c)
}

// run resumes a connection, and then those of the queue.
func (p *Pool) run(c *Conn) {
	for ; c != nil; c = p.next() {
		c.run(false)
		// The loop may be waiting for a processor. Otherwise the runtime would leave the
		// processor to this goroutine for up to 10 ms.
		runtime.Gosched()
	}
}

// next returns the next connection of the queue, or nil after releasing the room.
func (p *Pool) next() *Conn {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		p.free++
		return nil
	}
	c := p.queue[0]
	p.queue[0] = nil
	p.queue = p.queue[1:]
	return c
}
