package upstream_test

import (
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"nar-herder/narinfo"
	"nar-herder/upstream"
)

// TestTurns: a client's burst delays the single question of another only by the requests that are sent
// already, and not its own next question less.
func TestTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := network{"0.example": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			time.Sleep(2 * time.Millisecond)
			w.WriteHeader(http.StatusNotFound)
		})}.open(t, nil)
		const burst = 6000
		var answered atomic.Int64
		ask := func(client string, from, to int, after func()) {
			ctx := upstream.WithClient(t.Context(), netip.MustParsePrefix(client))
			s.Ask(ctx, hashes(from, to), nil, func(narinfo.PathHash, upstream.Answer) { after() })
		}
		var running sync.WaitGroup
		running.Go(func() { ask("192.0.2.1/32", 0, burst, func() { answered.Add(1) }) })
		time.Sleep(100 * time.Millisecond)
		running.Go(func() {
			ask("192.0.2.1/32", burst, burst+1, func() {
				if n := answered.Load(); n < burst-1024 {
					t.Errorf("the second question of a client is answered after %d of %d of its first", n, burst)
				}
			})
		})
		ask("192.0.2.2/32", burst+1, burst+2, func() {
			if n := answered.Load(); n > burst/2 {
				t.Errorf("the question of another client is answered after %d of %d", n, burst)
			}
		})
		running.Wait()
		s.Close()
		time.Sleep(time.Minute)
	})
}
