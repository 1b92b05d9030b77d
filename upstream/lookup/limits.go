package lookup

import (
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// The limits of questions in a second, and at once. A client asks for a thousand items in a
// burst, and for tens of thousands when it asks what is available.
const (
	clientRate  = 2_000
	clientBurst = 20_000
	totalRate   = 5 * clientRate
	totalBurst  = 5 * clientBurst
	// mostClients bounds the clients whose questions are counted.
	mostClients = 10_000
)

// limits bound the questions of each client, and of all together.
type limits struct {
	mu      sync.Mutex
	total   *rate.Limiter
	clients *simplelru.LRU[netip.Prefix, *rate.Limiter]
}

func newLimits() *limits {
	clients, _ := simplelru.NewLRU[netip.Prefix, *rate.Limiter](mostClients, nil) // fails only for a size below one
	return &limits{total: rate.NewLimiter(totalRate, totalBurst), clients: clients}
}

// take returns how many of n questions a client may ask now.
func (l *limits) take(client netip.Prefix, n int, now time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n = min(n, int(l.total.TokensAt(now)))
	if client.IsValid() {
		own, ok := l.clients.Get(client)
		if !ok {
			own = rate.NewLimiter(clientRate, clientBurst)
			l.clients.Add(client, own)
		}
		n = max(0, min(n, int(own.TokensAt(now))))
		own.AllowN(now, n)
	}
	n = max(0, n)
	l.total.AllowN(now, n)
	return n
}
