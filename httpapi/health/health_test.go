package health

import (
	"context"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestFirstCheck: until all parts were checked, questions for their states wait.
func TestFirstCheck(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		h := New([]Part{{Name: "at once", Look: func(context.Context) error { return nil }}, {Name: "slow", Needed: true, Look: func(context.Context) error {
			time.Sleep(time.Second)
			return nil
		}}}, nil, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var running, asking sync.WaitGroup
		running.Go(func() { h.Run(ctx) })
		begun := time.Now()
		want := func(what string, problems bool) {
			if problems || time.Since(begun) != time.Second {
				t.Errorf("%s: problems %v, after %s", what, problems, time.Since(begun))
			}
		}
		asking.Go(func() {
			for _, state := range h.States(ctx) {
				want("page, "+state.Part, state.Problems != nil)
			}
		})
		asking.Go(func() {
			_, body, err := h.Answer(ctx, false)
			want("/health", err != nil || string(body) != `{"status":"ok"}`+"\n")
		})
		asking.Wait()
		cancel()
		running.Wait()
	})
}
