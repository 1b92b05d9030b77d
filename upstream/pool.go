package upstream

import (
	"context"
	"sync"

	"nar-herder/upstream/pipeline"
	"nar-herder/upstream/turns"
)

// pool processes calls one by one, several at once.
type pool struct {
	process func(pipeline.Call)
	limit   func() int // of goroutines

	mu      sync.Mutex
	queue   turns.Queue[pipeline.Call]
	running int
}

// Send queues calls, and returns at once.
func (p *pool) Send(calls ...pipeline.Call) {
	var unneeded []pipeline.Call
	p.mu.Lock()
	// The calls may all wait for a directory that hangs.
	p.queue.Drop(func(call pipeline.Call) bool {
		if call.Context().Err() == nil {
			return false
		}
		unneeded = append(unneeded, call)
		return true
	})
	p.queue.Push(calls...)
	for range min(p.limit()-p.running, p.queue.Len()) {
		p.running++
		go p.work()
	}
	p.mu.Unlock()
	for _, call := range unneeded {
		call.Done(nil, context.Cause(call.Context()))
	}
}

func (p *pool) work() {
	for {
		p.mu.Lock()
		if p.queue.Len() == 0 || p.running > p.limit() {
			p.running--
			p.mu.Unlock()
			return
		}
		call, _ := p.queue.Pop()
		p.mu.Unlock()
		if call.Context().Err() != nil {
			call.Done(nil, context.Cause(call.Context()))
			continue
		}
		p.process(call)
	}
}
