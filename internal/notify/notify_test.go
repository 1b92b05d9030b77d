package notify

import (
	"context"
	"errors"
	"sync"
	"testing"
)

// TestWait: all waiters notice each relevant change.
func TestWait(t *testing.T) {
	t.Parallel()
	const changes, waiters = 1000, 8
	var m Mutex
	n := 0
	var waiting sync.WaitGroup
	for range waiters {
		waiting.Go(func() {
			for want := 0; want <= changes; want += 7 {
				if err := m.Wait(t.Context(), func() bool { return n >= want }); err != nil {
					t.Errorf("waiting for %d: %v", want, err)
					return
				}
			}
		})
	}
	for range changes {
		m.Set(func() { n++ })
	}
	waiting.Wait()
	ctx, cancel := context.WithCancel(t.Context())
	waiting.Go(func() {
		if err := m.Wait(ctx, func() bool { return false }); !errors.Is(err, context.Canceled) {
			t.Errorf("with a canceled context: %v", err)
		}
	})
	cancel()
	waiting.Wait()
	// Wait returns at once if the condition is true.
	if err := m.Wait(ctx, func() bool { return n == changes }); err != nil {
		t.Error(err)
	}
}
