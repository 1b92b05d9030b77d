package eventloop

import (
	"runtime"
	"sync"
)

// Pool bounds how many connections do work of one kind at a time outside the loop. The
// others wait in its queue and not in that of the runtime, where the loop would wait behind
// all of them for a processor.
type Pool struct {
	mu    sync.Mutex
	free  int // how many more connections may run
	queue []*Conn
}

// NewPool makes a pool for that many connections at a time.
func NewPool(width int) *Pool { return &Pool{free: width} }

// Enter waits until it is the connection's turn in the pool, where it stays until it waits
// to read, is queued for the loop, enters a pool again, or leaves. Call it before what takes
// a short time of a processor or a disk, once for each such task.
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
		// The loop may be waiting for a processor, which the runtime leaves to a goroutine for
		// up to 10 ms otherwise.
		runtime.Gosched()
	}
}

// next returns the next connection of the queue, or nil after giving up its place.
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
