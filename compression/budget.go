package compression

import (
	"bufio"
	"container/list"
	"context"
	"fmt"
	"io"
	"sync"
)

// Budget is memory that all decoders of a process share. Those for clients reserve it with Reserve; for background work,
// NewReader reserves it, and waits for it.
// Reservations exceed the budget only by one decoder for clients and one of background work: each gets its memory if there
// is no other of its kind, so that even one that needs more than the budget gets its turn.
// A nil Budget has no limit for background work.
type Budget struct {
	total int64

	mu         sync.Mutex
	queue      list.List     // of the *share values of background work that waits
	clients    int64         // reserved for clients
	background int64         // reserved for background work
	changed    chan struct{} // closed, and made anew, when something was released
	notify     func()
}

// NewBudget makes a budget of so many bytes.
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

// Notify sets a function to call when background work has released memory.
func (b *Budget) Notify(f func()) {
	b.mu.Lock()
	b.notify = f
	b.mu.Unlock()
}

// Reserve reserves memory for a client if it is free, or in any case with anyway.
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

// NewReader is [NewReader] for background work. It waits for the memory that the beginning of the data needs, of which
// background work gets no more than half. Callers that need little may overtake one that needs much. size is that of the
// decompressed data, -1 if unknown. Streams that need more later get it if it is free, else the error is an [ErrTooLarge].
//
// Between the call and Close, a caller must not wait for another such reader, nor for anything that is held by a caller of
// NewReader while it waits, such as room for the parts of an upload.
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

// share is the part of a budget that a reader of background work has.
type share struct {
	budget *Budget
	bytes  int64
	// wanted is how much it waits for, and overtaken how much the readers have that overtook it.
	wanted, overtaken int64
	overtook          *share
}

// wait waits for the first memory of the share.
func (s *share) wait(ctx context.Context, bytes int64) error {
	b := s.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	s.wanted = bytes
	place := b.queue.PushBack(s)
	defer func() {
		b.queue.Remove(place)
		b.change() // which may be the turn of others
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

// grow enlarges the share if the bytes are free. Readers that fit beside the first in the queue may overtake it, so that it
// waits only for those that were there before it. The mutex is held.
func (s *share) grow(bytes int64) bool {
	b, more := s.budget, bytes-s.bytes
	fits := func(background int64) bool { return background <= b.total/2 && b.clients+background <= b.total }
	if b.background != s.bytes && !fits(b.background+more) { // else it is alone
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

// allow reports whether the reader may hold that many bytes.
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

// sharing is a reader with a share, which Close returns.
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
