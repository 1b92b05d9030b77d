// Package linger extends contexts, so that short work can finish after a cancellation.
package linger

import (
	"context"
	"time"
)

// Second is enough for a store that answers, and short enough to finish before a supervisor
// kills the program.
const Second = time.Second

// Context returns a context with the values of ctx, but without its deadline. It ends a while
// after ctx has ended, or when cancel is called.
func Context(ctx context.Context, while time.Duration) (_ context.Context, cancel context.CancelFunc) {
	longer, finish := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.NewTimer(while)
		defer timer.Stop()
		select {
		case <-timer.C:
			finish(context.Cause(ctx))
		case <-longer.Done():
		}
	})
	return longer, func() {
		stop()
		finish(nil)
	}
}
