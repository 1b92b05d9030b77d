package eventloop

import (
	"runtime"
	"sync"
)

// Pool bounds how many connections do work of one kind concurrently outside the loop. The
// others wait in its queue, not in the runtime's, where the loop would have to wait behind
// them for a processor.
type Pool struct {
	mu    sync.Mutex
	free  int // how many more connections may run
	queue []*Conn
}

// NewPool returns a pool for that many connections at a time.
func NewPool(width int) *Pool { return &Pool{free: width} }

// Enter waits for the connection's turn in the pool. The connection stays in the pool until
// it waits to read, is queued for the loop, enters a pool again, or leaves. Call it before each
// task that takes a short time of a processor or a disk.
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
		// The loop may be waiting for a processor, and the runtime preempts a goroutine only
		// after 10 ms.
		runtime.Gosched()
	}
}

// next returns the next connection of the queue, or nil after freeing a slot.
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
