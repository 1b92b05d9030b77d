package peerapi

import (
	"net/netip"
	"testing"
	"time"

	"nar-herder/peer"
)

// TestLimitOfAll: many clients are each within their limit, but not all together.
func TestLimitOfAll(t *testing.T) {
	t.Parallel()
	l := newLimiter()
	now := time.Now()
	asked := 0
	for i := range 1000 {
		client := netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)})
		if _, ok := l.reserve(client, peer.MostAsked, now); ok {
			asked += peer.MostAsked
		}
	}
	if want := totalBurst + sharesBurst + (totalRate+sharesRate)*int(AdmitTime/time.Second); asked != want {
		t.Errorf("%d items, want %d", asked, want)
	}
	for i := range 3 * mostClients {
		l.reserve(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 1, now.Add(time.Hour))
	}
	if got := l.clients.Len(); got > mostClients {
		t.Errorf("%d clients are kept", got)
	}
}

// TestLimitOfShares: clients at their limit use up the total. Their shares are bounded, each
// and together.
func TestLimitOfShares(t *testing.T) {
	t.Parallel()
	const seconds = 60
	for _, clients := range []int{1, 10, 1000} {
		l := newLimiter()
		now := time.Now()
		l.total.SetBurst(0) // as if others used it up
		asked, each := 0, 5 // times a second
		if clients > 10 {
			each = 1
		}
		for i := range each * seconds {
			for client := range clients {
				if _, ok := l.reserve(netip.AddrFrom4([4]byte{192, 0, byte(client >> 8), byte(client)}), peer.MostAsked, now.Add(time.Duration(i)*time.Second/time.Duration(each))); ok {
					asked += peer.MostAsked
				}
			}
		}
		// The last fifth of a second is not over, and the last request may not fit.
		waiting := seconds + int(AdmitTime/time.Second)
		most := min(clients*(shareBurst+shareRate*waiting), sharesBurst+sharesRate*waiting)
		if least := most - most/seconds - clients*peer.MostAsked; asked > most || clients <= 10 && asked < least || asked < most/2 {
			t.Errorf("%d clients: %d items, want %d", clients, asked, most)
		}
	}
}
