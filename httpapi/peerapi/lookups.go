package peerapi

import (
	"context"
	"fmt"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/valyala/fasthttp"
	"golang.org/x/time/rate"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/respond"
	"nar-herder/storage"
)

const (
	// StoredTime is the timeout of look-ups for one request. With AdmitTime, it is less than
	// the 15 s for which another instance waits.
	StoredTime = 10 * time.Second
	// AdmitTime is the timeout for admitting a request.
	AdmitTime = 3 * time.Second

	// ClientRate is how many items or changes per second a client may request, and
	// ClientBurst how many at once. A removal at another instance has two requests for 200
	// items in flight, and takes 17 minutes for 10 million items at that rate.
	ClientRate  = 10_000
	ClientBurst = 4_000
	// totalRate and totalBurst limit all clients together.
	totalRate  = 20_000
	totalBurst = 8_000
	// shareRate and shareBurst limit a client when others use up the total: two requests
	// for 200 items in flight wait for at most two seconds. sharesRate and sharesBurst limit
	// all shares together, so that clients with many addresses can't overload the storage.
	shareRate   = 200
	shareBurst  = 400
	sharesRate  = 5_000
	sharesBurst = 5_000
	// mostClients bounds the memory for recent clients.
	mostClients = 10_000

	// admitRetry is the Retry-After header of a refused request, in seconds.
	admitRetry = "5"
)

// lookFor looks up a file, within the bound of concurrent look-ups.
func (s *API) lookFor(ctx context.Context, item *storage.Item, n int) error {
	select {
	case s.lookups <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	defer func() { <-s.lookups }()
	return s.options.Items.LookFor(ctx, item, n)
}

// each calls f concurrently for the numbers below n. It panics if f does, so that only the
// request fails.
func (s *API) each(n int, f func(i int)) {
	var next atomic.Int64
	var fault atomic.Pointer[string]
	var calls sync.WaitGroup
	for range min(cap(s.lookups), n) {
		calls.Go(func() {
			defer func() {
				if v := recover(); v != nil {
					text := fmt.Sprintf("%v\n%s", v, debug.Stack())
					fault.Store(&text)
				}
			}()
			for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
				f(int(i))
			}
		})
	}
	calls.Wait()
	if text := fault.Load(); text != nil {
		panic(*text)
	}
}

// faults counts failed look-ups of one request.
type faults struct {
	mu    sync.Mutex
	count int
	item  string // the first
	err   error
}

func (f *faults) add(item string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count++; f.count == 1 {
		f.item, f.err = item, err
	}
}

// admit waits until a client may request count items. It returns false after refusing the
// request.
func (s *API) admit(ctx *fasthttp.RequestCtx, count int) bool {
	wait, ok := s.limiter.reserve(s.options.Proxies.Client(ctx), count, time.Now())
	if !ok {
		ctx.Response.Header.Set("Retry-After", admitRetry)
		respond.Fail(ctx, fasthttp.StatusServiceUnavailable, "too many items were requested: retry later")
		return false
	}
	if wait > 0 {
		timer := time.NewTimer(wait)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.options.Live.Done():
		}
	}
	return true
}

// await is admit for a further page of an answer. It waits as long as necessary.
func (s *API) await(ctx context.Context, client netip.Addr, count int) error {
	for {
		wait, ok := s.limiter.reserve(client, count, time.Now())
		if ok && wait == 0 {
			return nil
		}
		if !ok {
			wait = AdmitTime
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return ctx.Err()
		}
		if ok {
			return nil
		}
	}
}

// limiter limits the rate of items for each client, and for all together.
type limiter struct {
	mu      sync.Mutex
	total   *rate.Limiter
	shares  *rate.Limiter
	clients *simplelru.LRU[netip.Prefix, *clientLimits]
}

// clientLimits are the limiters of one client: of all its requests, and of those when others
// use up the total.
type clientLimits struct{ own, share *rate.Limiter }

func newLimiter() *limiter {
	clients, err := simplelru.NewLRU[netip.Prefix, *clientLimits](mostClients, nil)
	if err != nil {
		panic(err) // NewLRU fails only for a size below one
	}
	return &limiter{total: rate.NewLimiter(totalRate, totalBurst), shares: rate.NewLimiter(sharesRate, sharesBurst), clients: clients}
}

// reserve returns how long a client must wait for count items. ok is false if that is longer
// than AdmitTime.
func (l *limiter) reserve(client netip.Addr, count int, now time.Time) (wait time.Duration, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	network := clients.NetworkOf(client)
	limits, known := l.clients.Get(network)
	if !known {
		limits = &clientLimits{own: rate.NewLimiter(ClientRate, ClientBurst), share: rate.NewLimiter(shareRate, shareBurst)}
		l.clients.Add(network, limits)
	}
	if wait, ok = reserveAll(count, now, limits.own, l.total); !ok {
		wait, ok = reserveAll(count, now, limits.own, limits.share, l.shares)
	}
	return wait, ok
}

// reserveAll reserves count items of all limiters, or none if the wait is longer than AdmitTime.
func reserveAll(count int, now time.Time, limiters ...*rate.Limiter) (wait time.Duration, ok bool) {
	var reserved []*rate.Reservation
	for _, limiter := range limiters {
		r := limiter.ReserveN(now, count)
		reserved = append(reserved, r)
		wait = max(wait, r.DelayFrom(now))
	}
	if wait <= AdmitTime {
		return wait, true
	}
	for _, r := range reserved {
		r.CancelAt(now)
	}
	return 0, false
}
