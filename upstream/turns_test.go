package upstream_test

import (
	"context"
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

// TestTurnsOfMany: clients that come later don't keep a client with many questions from its turns,
// while the preferred upstream is too slow.
func TestTurnsOfMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const long, short, many = 2000, 500, 12
		var sent, all atomic.Int64
		s := network{
			"0.example": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				time.Sleep(4 * time.Second)
				w.WriteHeader(http.StatusNotFound)
			}),
			"1.example": http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				all.Add(1)
				if numbers[r.URL.Path[1:1+narinfo.PathHashLen]] >= short {
					sent.Add(1)
				}
				time.Sleep(4 * time.Millisecond) // 1,000 a second, on 4 connections
				has(long, 1)(w, r)
			}),
		}.open(t, nil)
		ctx, end := context.WithCancel(t.Context())
		ask := func(n int, asked []narinfo.PathHash) {
			client := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(n)}), 32)
			s.Ask(upstream.WithClient(ctx, client), asked, nil, func(narinfo.PathHash, upstream.Answer) {})
		}
		var running sync.WaitGroup
		for range 4 {
			running.Go(func() { ask(0, hashes(short, long)) })
		}
		for n := range many {
			time.Sleep(500 * time.Millisecond) // as many as can be answered in this time
			if n == many/2 {
				sent.Store(0)
				all.Store(0)
			}
			running.Go(func() {
				for ctx.Err() == nil {
					ask(1+n, hashes(0, short))
				}
			})
		}
		time.Sleep(2 * time.Second)
		if n, all := sent.Load(), all.Load(); n < all/many {
			t.Errorf("%d requests of %d are those of the first client", n, all)
		}
		end()
		running.Wait()
		s.Close()
		time.Sleep(time.Minute)
	})
}
