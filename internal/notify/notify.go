// Package notify has a mutex that notifies waiters when the state that it guards changes.
package notify

import (
	"context"
	"sync"
)

// Mutex guards a state that others wait for. The zero value is ready. Waiters don't notice
// changes that are made without Set.
type Mutex struct {
	sync.Mutex
	// changed is closed at the next change, and another then; nil while nobody waits.
	changed chan struct{}
}

// Set changes the state, with the mutex held, and notifies all waiters.
func (m *Mutex) Set(change func()) {
	m.Lock()
	defer m.Unlock()
	change()
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// Wait waits until the condition, which is called with the mutex held, is true. The
// error is the context's.
func (m *Mutex) Wait(ctx context.Context, condition func() bool) error {
	for {
		m.Lock()
		if condition() {
			m.Unlock()
			return nil
		}
		if m.changed == nil {
			m.changed = make(chan struct{})
		}
		changed := m.changed
		m.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
