// Package linger lets work that is nearly done finish after its context has ended.
package linger

import (
	"context"
	"time"
)

// Second is enough for a store that answers, and leaves the rest of the program time
// to end before its supervisor kills it.
const Second = time.Second

// Context returns a context with the values of ctx that ends a while after ctx has
// ended, or when cancel is called. The deadline of ctx does not matter to it.
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
