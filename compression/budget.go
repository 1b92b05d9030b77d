package compression

import (
	"bufio"
	"container/list"
	"context"
	"fmt"
	"io"
	"sync"
)

// Budget is memory that all decoders of a process share. Reserve reserves it for decoders of clients; NewReader reserves it
// for background work, and waits for it.
// A decoder that needs more than the budget runs alone among those of its kind, clients' or background work's, so
// reservations may exceed the budget by one decoder of each.
// A nil Budget has no limit for background work.
type Budget struct {
	total int64

	mu         sync.Mutex
	queue      list.List     // of *share: background work that waits
	clients    int64         // reserved for clients
	background int64         // reserved for background work
	changed    chan struct{} // closed and replaced when memory is released
	notify     func()
}

// NewBudget makes a budget of a number of bytes.
func NewBudget(bytes int64) *Budget {
	return &Budget{total: bytes, changed: make(chan struct{}), notify: func() {}}
}

// Total returns the size of the budget.
func (b *Budget) Total() int64 { return b.total }

// Background returns how many bytes are reserved for background work.
func (b *Budget) Background() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.background
}

// Notify sets the function that is called when background work has released memory.
func (b *Budget) Notify(f func()) {
	b.mu.Lock()
	b.notify = f
	b.mu.Unlock()
}

// Reserve reserves memory for a client and returns true, if the memory is free or anyway is set.
func (b *Budget) Reserve(bytes int64, anyway bool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !anyway && b.clients+b.background+bytes > b.total {
		return false
	}
	b.clients += bytes
	return true
}

// Release undoes Reserve.
func (b *Budget) Release(bytes int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clients -= bytes
	b.change()
}

func (b *Budget) change() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// NewReader is the function [NewReader] for background work. It waits for the memory that the beginning of the data needs, of which
// background work gets no more than half. Callers that need little may overtake one that needs much, as theirs fits earlier. size is that of the
// decompressed data, -1 if unknown. Streams that need more later get it if it is free, else the error is an [ErrTooLarge].
//
// To avoid deadlocks, a caller must not wait between the call and Close for another such reader, or for a resource that
// callers of NewReader hold, such as room for the parts of an upload.
func (b *Budget) NewReader(ctx context.Context, name string, r io.Reader, size int64) (io.ReadCloser, error) {
	if b == nil || name == None || !Known(name) {
		return NewReader(name, r)
	}
	in := bufio.NewReaderSize(r, inputBuffer)
	head, err := in.Peek(HeadBytes)
	if err != nil && err != io.EOF {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	share := &share{budget: b}
	if err := share.wait(ctx, Memory(name, head, size)); err != nil {
		return nil, err
	}
	var z io.ReadCloser
	defer func() {
		if z == nil { // also when the decoder panics
			share.release()
		}
	}()
	if z, err = newReader(name, in, share.allow); err != nil {
		z = nil
		return nil, err
	}
	return &sharing{z, share}, nil
}

// share is the part of a budget of a reader of background work.
type share struct {
	budget *Budget
	bytes  int64
	// wanted is how much it has waited for, and overtaken how much memory the readers that overtook it have.
	wanted, overtaken int64
	overtook          *share
}

// wait waits for the first memory of the share.
func (s *share) wait(ctx context.Context, bytes int64) error {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	s.wanted = bytes
	element := b.queue.PushBack(s)
	defer func() {
		b.queue.Remove(element)
		b.change() // others may be first now
	}()
	for !s.grow(bytes) {
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		b.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// grow enlarges the share if the memory is free. Readers may overtake the first in the queue if they fit beside it, so that
// it waits only for older readers. The mutex is held.
func (s *share) grow(bytes int64) bool {
	b, more := s.budget, bytes-s.bytes
	fits := func(background int64) bool { return background <= b.total/2 && b.clients+background <= b.total }
	if b.background != s.bytes && !fits(b.background+more) { // s is not the only one
		return false
	}
	if front := b.queue.Front(); s.bytes == 0 && front != nil && front.Value != s {
		first := front.Value.(*share)
		if !fits(first.wanted + first.overtaken + more) {
			return false
		}
		first.overtaken += more
		s.overtook = first
	}
	b.background += more
	s.bytes = bytes
	return true
}

// allow reports whether the reader may use that many bytes.
func (s *share) allow(needed int64) bool {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	return needed <= s.bytes || s.grow(needed)
}

func (s *share) release() {
	b := s.budget
	b.mu.Lock()
	b.background -= s.bytes
	if s.overtook != nil {
		s.overtook.overtaken -= s.wanted
	}
	s.bytes = 0
	b.change()
	notify := b.notify
	b.mu.Unlock()
	notify()
}

// sharing is a reader with a share, which Close releases.
type sharing struct {
	io.ReadCloser
	share *share
}

// WriteTo implements [io.WriterTo].
func (s *sharing) WriteTo(w io.Writer) (int64, error) { return s.ReadCloser.(io.WriterTo).WriteTo(w) }

func (s *sharing) Close() error {
	defer s.share.release()
	return s.ReadCloser.Close()
}
