package upstream

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"nar-herder/narinfo"
)

// TestSettlerOrder: replies that wait are settled in the order of their questions, and adding one
// waits while they are too large.
func TestSettlerOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSettler()
		var mu sync.Mutex
		var order []byte
		hashes := make([]narinfo.PathHash, 8)
		for i := range hashes {
			hashes[i][0] = byte(i)
		}
		q := &question{
			set: &Set{}, hashes: hashes, items: make([]item, len(hashes)), done: make(chan struct{}),
			deliver: func(hash narinfo.PathHash, _ Answer) {
				mu.Lock()
				defer mu.Unlock()
				order = append(order, hash[0])
			},
		}
		q.left.Store(int64(len(hashes)))
		var client netip.Prefix
		if first, second := s.reserve(client, 3), s.reserve(client, len(hashes)); first != 0 || second != 3 {
			t.Errorf("places %d and %d", first, second)
		}
		s.running = 1 << 10 // none more is started
		go func() {
			for _, i := range []int{6, 1, 0, 7, 3, 2, 5} {
				s.add(turn{uint64(3 + i), q, i, mostUnsettled / 6})
			}
			s.add(turn{3 + 4, q, 4, 1}) // waits: there is too much
		}()
		synctest.Wait()
		if len(s.queue) != 7 {
			t.Errorf("%d replies wait, want 7", len(s.queue))
		}
		s.running = 1
		go s.run()
		<-q.done
		synctest.Wait()
		at := slices.Index(order, 4)
		if at < 1 || !slices.IsSorted(slices.Delete(slices.Clone(order), at, at+1)) {
			t.Errorf("the order is %v", order)
		}
		if s.bytes != 0 || len(s.queue) != 0 || s.running != 0 {
			t.Errorf("%d bytes and %d replies wait, %d run", s.bytes, len(s.queue), s.running)
		}
	})
}

// TestSettlerTurns: items of a client come after those that it has asked for before, and in turn with
// those of others.
func TestSettlerTurns(t *testing.T) {
	s := newSettler()
	one, other := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
	reserve := func(client netip.Prefix, n int, want uint64) {
		t.Helper()
		if got := s.reserve(client, n); got != want {
			t.Errorf("the place is %d, want %d", got, want)
		}
	}
	settle := func(place uint64, isDecided bool) {
		q := &question{items: []item{{decided: isDecided, verifying: !isDecided}}}
		s.running++
		s.queue = unsettled{{place: place, question: q}}
		s.run()
	}
	reserve(one, 20_000, 0)
	settle(99, true)
	settle(5_000, false) // a reply of one upstream, another is awaited
	reserve(other, 1, 100)
	reserve(one, 1_000, 20_000)
	reserve(other, 1, 101)
	settle(50, true) // out of order
	s.release(other)
	reserve(other, 1, 102)
	settle(100, true)
	settle(101, true)
	s.release(other)
	s.release(other)
	reserve(other, 1, 102) // not 103: nothing of it is left
	reserve(netip.Prefix{}, 1, 102)
	for _, client := range []netip.Prefix{one, one, other, {}} {
		s.release(client)
	}
	if len(s.clients) > 0 {
		t.Errorf("%d clients wait", len(s.clients))
	}
}
