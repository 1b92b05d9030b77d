package compression

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"sync"
)

// Budget is memory that all decoders of a process share. Those that work for clients reserve it themselves, with Reserve;
// background work has NewReader do so, and wait for it.
//
// What is reserved exceeds the budget only by a decoder for clients and one of background work, each of which gets its
// memory when there is no other of its kind: so none waits for ever, even if it needs more than the budget.
//
// A nil Budget is without a limit for background work.
type Budget struct {
	total int64
	first chan struct{} // held by the first in the queue of background work

	mu         sync.Mutex
	clients    int64         // reserved for clients
	background int64         // reserved for background work
	changed    chan struct{} // closed, and made anew, when something was released
	notify     func()
}

// NewBudget makes a budget of so many bytes.
func NewBudget(bytes int64) *Budget {
	return &Budget{total: bytes, first: make(chan struct{}, 1), changed: make(chan struct{}), notify: func() {}}
}

// Total returns the size of the budget.
func (b *Budget) Total() int64 { return b.total }

// Background returns what is reserved for background work.
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

// NewReader is [NewReader] for background work. It waits until there is memory for what the beginning of the data asks for,
// of which background work gets no more than half. size is that of the data when decompressed, -1 when it is not known.
// Streams that ask for more later get it if it is free, else the error is an [ErrTooLarge].
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

// share is what a reader of background work has of a budget.
type share struct {
	budget *Budget
	bytes  int64
}

// wait waits for the first memory of the share.
func (s *share) wait(ctx context.Context, bytes int64) error {
	b := s.budget
	select {
	case b.first <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-b.first }()
	for {
		b.mu.Lock()
		changed, ok := b.changed, s.grow(bytes)
		b.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// grow makes the share one of so many bytes where they are free. The mutex is held.
func (s *share) grow(bytes int64) bool {
	b, more := s.budget, bytes-s.bytes
	alone := b.background == s.bytes
	if !alone && (b.background+more > b.total/2 || b.clients+b.background+more > b.total) {
		return false
	}
	b.background += more
	s.bytes = bytes
	return true
}

// allow reports whether the reader may hold so many bytes.
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
	s.bytes = 0
	b.change()
	notify := b.notify
	b.mu.Unlock()
	notify()
}

// sharing is a reader that has a share until it is closed.
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
