// Package notify provides a mutex that notifies waiters of changes.
package notify

import (
	"context"
	"sync"
)

// Mutex guards a state. The zero value is ready. Waiters don't notice changes without Set.
type Mutex struct {
	sync.Mutex
	// changed is closed by the next Set; nil without waiters.
	changed chan struct{}
}

// Set calls change with the mutex held, and notifies all waiters.
func (m *Mutex) Set(change func()) {
	m.Lock()
	defer m.Unlock()
	change()
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// Wait waits until the condition is true. It calls it with the mutex held. The error is the
// context's.
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
