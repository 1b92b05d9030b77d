package httpapi

import (
	"context"
	"encoding/json"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/peerapi"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// remoteItems are as many items as hashes, each with one file in a slow byte store.
type remoteItems struct {
	fakeItems
	look       func(context.Context) error
	now, most  atomic.Int32
	concurrent int
}

func newDistantItems(t *testing.T, look func(context.Context) error) *remoteItems {
	m := make1(t, "x", "content", "none")
	d := &remoteItems{look: look, concurrent: 32}
	item := m.item(t)
	d.item = func(narinfo.PathHash) (*storage.Item, error) { return item, nil }
	return d
}

func (d *remoteItems) Concurrency() int { return d.concurrent }

func (d *remoteItems) LookFor(ctx context.Context, _ *storage.Item, _ int) error {
	d.most.Store(max(d.most.Load(), d.now.Add(1)))
	defer d.now.Add(-1)
	return d.look(ctx)
}

// manyHashes are those of peer.MostAsked items.
var manyHashes = sync.OnceValue(func() (hashes []string) {
	for i := range peer.MostAsked {
		hashes = append(hashes, numbered(i).String())
	}
	return hashes
})

// askStored requests items from an address, without a connection.
func askStored(s *Server, address string, count int) *fasthttp.RequestCtx {
	var ctx fasthttp.RequestCtx
	ctx.Init(&fasthttp.Request{}, &net.TCPAddr{IP: net.ParseIP(address), Port: 1}, nil)
	ctx.Request.SetRequestURI(peer.StoredPath + strings.Join(manyHashes()[:count], ","))
	s.handle(&ctx)
	return &ctx
}

// storedNars returns the nars of a successful answer.
func storedNars(t *testing.T, ctx *fasthttp.RequestCtx) []peer.StoredNar {
	t.Helper()
	var reply peer.StoredReply
	if err := json.Unmarshal(ctx.Response.Body(), &reply); err != nil || ctx.Response.StatusCode() != 200 {
		t.Fatalf("%d %s", ctx.Response.StatusCode(), ctx.Response.Body())
	}
	return reply.Nars
}

func after(d time.Duration) func(context.Context) error {
	return func(ctx context.Context) error {
		select {
		case <-time.After(d):
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// TestStoredRemote requests as many items as allowed at a time, from a bucket that takes 100
// ms for each: several callers together don't exceed its concurrency.
func TestStoredRemote(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		items := newDistantItems(t, after(100*time.Millisecond))
		s := New(items, options())
		for _, callers := range []int{1, 4} {
			begun := time.Now()
			var asking sync.WaitGroup
			for caller := range callers {
				asking.Go(func() {
					for _, nar := range storedNars(t, askStored(s, "192.0.2."+strconv.Itoa(caller), peer.MostAsked)) {
						if !nar.Stored || nar.Fault || len(nar.Files) != 1 {
							t.Errorf("%+v", nar)
						}
					}
				})
			}
			asking.Wait()
			if took, most := time.Since(begun), time.Duration(callers)*800*time.Millisecond; took > most {
				t.Errorf("%d callers: after %s, want %s at the most", callers, took, most)
			}
		}
		if got := items.most.Load(); int(got) != items.concurrent {
			t.Errorf("%d looks at once, want %d", got, items.concurrent)
		}
	})
}

// TestStoredHanging: an answer arrives before the caller's timeout, and marks the items that
// are unknown.
func TestStoredHanging(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var looks atomic.Int32
		s := newStarted(newDistantItems(t, func(ctx context.Context) error {
			if looks.Add(1) > 10 {
				return after(time.Hour)(ctx)
			}
			return nil
		}), options())
		begun := time.Now()
		stored, faults := 0, 0
		for _, nar := range storedNars(t, askStored(s.Server, "192.0.2.1", peer.MostAsked)) {
			if nar.Stored {
				stored++
			}
			if nar.Fault {
				faults++
			}
		}
		if took := time.Since(begun); stored != 10 || faults != peer.MostAsked-10 || took > peerapi.StoredTime {
			t.Errorf("%d stored, %d unknown after %s", stored, faults, took)
		}
		if got := strings.Count(s.log.String(), "can't look up nars for another instance"); got != 1 {
			t.Errorf("%d lines in the log:\n%s", got, s.log.String())
		}
	})
}

// TestStoredPanics: a panic fails only the request.
func TestStoredPanics(t *testing.T) {
	t.Parallel()
	s := newStarted(newDistantItems(t, func(context.Context) error { panic("at the disco") }), options())
	if ctx := askStored(s.Server, "192.0.2.1", 5); ctx.Response.StatusCode() != 500 || !strings.Contains(s.log.String(), "at the disco") {
		t.Errorf("%d %s", ctx.Response.StatusCode(), s.log.String())
	}
}

// TestStoredLimit: an instance removes nars beside a client that sends requests for ever.
func TestStoredLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(newDistantItems(t, func(context.Context) error { return nil }), options())
		const flood = 300
		var refused, answered atomic.Int32
		var asking sync.WaitGroup
		for range flood {
			asking.Go(func() {
				switch ctx := askStored(s, "192.0.2.1", peer.MostAsked); {
				case ctx.Response.StatusCode() == 200:
					answered.Add(1)
				case ctx.Response.StatusCode() != 503 || string(ctx.Response.Header.Peek("Retry-After")) != "5" || string(ctx.Response.Header.Peek("Cache-Control")) != respond.NoStore:
					t.Errorf("%d %s", ctx.Response.StatusCode(), &ctx.Response.Header)
				default:
					refused.Add(1)
				}
			})
		}
		// A removal of 40,000 items has two requests in flight.
		begun := time.Now()
		for range 2 {
			asking.Go(func() {
				for range 100 {
					storedNars(t, askStored(s, "192.0.2.2", peer.MostAsked))
				}
			})
		}
		asking.Wait()
		if took := time.Since(begun); took > 15*time.Second {
			t.Errorf("the removal took %s", took)
		}
		// The burst, and what is added within AdmitTime.
		if most := int32(peerapi.ClientBurst+peerapi.ClientRate*int(peerapi.AdmitTime/time.Second)) / peer.MostAsked; answered.Load() != most || refused.Load() != flood-most {
			t.Errorf("%d questions answered, %d refused", answered.Load(), refused.Load())
		}
		// Later, it is admitted again.
		time.Sleep(time.Second)
		storedNars(t, askStored(s, "192.0.2.1", peer.MostAsked))
	})
}

// TestStoredShare: many addresses together use up the total while another instance removes
// nars. None of its requests is refused.
func TestStoredShare(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := New(newDistantItems(t, func(context.Context) error { return nil }), options())
		// Together, more requests are in flight than are answered within AdmitTime.
		const addresses, questions, passes = 4, 100, 3
		removed := make(chan struct{})
		var refused atomic.Int32
		var flooding, removing sync.WaitGroup
		for i := range addresses * questions {
			flooding.Go(func() {
				for ended := false; !ended; {
					if askStored(s, "192.0.2."+strconv.Itoa(1+i%addresses), peer.MostAsked).Response.StatusCode() == 503 {
						refused.Add(1)
					}
					select {
					case <-removed:
						ended = true
					case <-time.After(500 * time.Millisecond):
					}
				}
			})
		}
		synctest.Wait()
		begun := time.Now()
		for range 2 {
			removing.Go(func() {
				for range passes {
					if code := askStored(s, "192.0.2.100", peer.MostAsked).Response.StatusCode(); code != 200 {
						t.Errorf("after %s: %d", time.Since(begun), code)
					}
				}
			})
		}
		removing.Wait()
		close(removed)
		flooding.Wait()
		if took, most := time.Since(begun), passes*peerapi.AdmitTime; took > most || refused.Load() == 0 {
			t.Errorf("the removal took %s, want %s at the most; %d questions of others were refused", took, most, refused.Load())
		}
	})
}

// manyChanges has an endless log of changes.
type manyChanges struct{ pages atomic.Int32 }

func (c *manyChanges) ChangesAfter(context.Context, int64, int) (index.Page, error) {
	c.pages.Add(1)
	return index.Page{First: 1}, nil
}

func (c *manyChanges) ChangesFrom(_ context.Context, _ *index.TimeCursor, limit int) ([]index.MirrorChange, bool, error) {
	c.pages.Add(1)
	return make([]index.MirrorChange, limit), true, nil
}

// TestChangesLimit: a client requests pages of changes for ever, and then all changes in one
// answer, beside a mirror that sends a request now and then.
func TestChangesLimit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		changes := new(manyChanges)
		o := options()
		o.Changes, o.Identity = changes, newStore(t, published+"/"+hashOf(greeting)+".narinfo")
		s := New(newDistantItems(t, nil), o)
		ask := func(query, address string) *fasthttp.RequestCtx {
			var ctx fasthttp.RequestCtx
			ctx.Init(&fasthttp.Request{}, &net.TCPAddr{IP: net.ParseIP(address), Port: 1}, nil)
			ctx.Request.SetRequestURI(peer.ChangesPath + query)
			s.handle(&ctx)
			return &ctx
		}
		const since = "?since=2026-01-01%2000:00:00"
		var answered, refused atomic.Int32
		var asking sync.WaitGroup
		for n := range 400 {
			asking.Go(func() {
				query := since
				if n%2 > 0 {
					query = "?after=0"
				}
				switch ctx := ask(query, "192.0.2.1"); {
				case ctx.Response.StatusCode() == 200:
					answered.Add(1)
				case ctx.Response.StatusCode() != 503 || string(ctx.Response.Header.Peek("Retry-After")) != "5":
					t.Errorf("%d %s", ctx.Response.StatusCode(), &ctx.Response.Header)
				default:
					refused.Add(1)
				}
			})
		}
		if ctx := ask(since, "192.0.2.2"); ctx.Response.StatusCode() != 200 {
			t.Errorf("another client gets %d", ctx.Response.StatusCode())
		}
		asking.Wait()
		if answered.Load() == 0 || refused.Load() < 100 {
			t.Errorf("%d questions answered, %d refused", answered.Load(), refused.Load())
		}
		time.Sleep(time.Minute)
		changes.pages.Store(0)
		body := ask(since, "192.0.2.1").Response.BodyStream()
		begun, buffer := time.Now(), make([]byte, 64<<10)
		for time.Since(begun) < 10*time.Second {
			if _, err := body.Read(buffer); err != nil {
				t.Fatal(err)
			}
		}
		if pages := changes.pages.Load(); pages > (peerapi.ClientBurst+11*peerapi.ClientRate)/peerapi.PageSize {
			t.Errorf("%d pages in ten seconds", pages)
		}
	})
}
