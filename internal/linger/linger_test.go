package linger

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithTimeout(t.Context(), time.Minute)
		defer end()
		begun := time.Now()
		longer, cancel := Context(ctx, Second)
		defer cancel()
		<-longer.Done()
		if took := time.Since(begun); took != time.Minute+Second {
			t.Errorf("it ended after %v", took)
		}
		if cause := context.Cause(longer); cause != context.DeadlineExceeded {
			t.Errorf("cause is %v", cause)
		}
	})
}

// TestCancel leaves neither a context nor a goroutine, which synctest would report.
func TestCancel(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		before, cancelBefore := Context(ctx, time.Hour)
		cancelBefore()
		during, cancelDuring := Context(ctx, time.Hour)
		end()
		synctest.Wait()
		if before.Err() == nil || during.Err() != nil {
			t.Errorf("before: %v, during: %v", before.Err(), during.Err())
		}
		cancelDuring()
		if during.Err() == nil {
			t.Error("the canceled context has not ended")
		}
	})
}
