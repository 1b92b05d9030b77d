// Package watched has a mutex that tells others when what it guards has changed.
package watched

import (
	"context"
	"sync"
)

// Mutex guards a state that others wait for. The zero value is ready. What is changed
// without Set, nobody is told of.
type Mutex struct {
	sync.Mutex
	// changed is closed at the next change, and another then; nil while nobody waits.
	changed chan struct{}
}

// Set changes the state, with the mutex held, and tells all who wait.
func (m *Mutex) Set(change func()) {
	m.Lock()
	defer m.Unlock()
	change()
	if m.changed != nil {
		close(m.changed)
		m.changed = nil
	}
}

// Wait waits until the condition, which is asked with the mutex held, is true. The
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
