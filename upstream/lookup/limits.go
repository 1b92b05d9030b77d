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
	// mostAsking bounds the questions in flight. Look-ahead may use half of it, so that it
	// delays nobody else.
	mostAsking = 50_000
	// mostRemembered bounds the remembered negative answers.
	mostRemembered = 100_000
	// mostUnwritten bounds the items in memory, which take some 5 KB each. Above half of it,
	// questions wait for the writer, but not longer than writeTimeout.
	mostUnwritten = 20_000
)

// limits bound the questions of each client, and of all together, and the memory.
type limits struct {
	// asking bounds the questions in flight, remembered the negative answers, and unwritten the
	// items that are not written yet. Tests change them, and share.
	asking, remembered, unwritten int
	// share makes the limiter of one client.
	share func() *rate.Limiter

	mu      sync.Mutex
	total   *rate.Limiter
	clients *simplelru.LRU[netip.Prefix, *rate.Limiter]
}

func newLimits() *limits {
	clients, _ := simplelru.NewLRU[netip.Prefix, *rate.Limiter](mostClients, nil) // fails only for a size below one
	return &limits{
		asking: mostAsking, remembered: mostRemembered, unwritten: mostUnwritten,
		share: func() *rate.Limiter { return rate.NewLimiter(clientRate, clientBurst) },
		total: rate.NewLimiter(totalRate, totalBurst), clients: clients,
	}
}

// take returns how many of n questions a client may ask now.
func (l *limits) take(client netip.Prefix, n int, now time.Time) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n = min(n, int(l.total.TokensAt(now)))
	if client.IsValid() {
		own, ok := l.clients.Get(client)
		if !ok {
			own = l.share()
			l.clients.Add(client, own)
		}
		n = max(0, min(n, int(own.TokensAt(now))))
		own.AllowN(now, n)
	}
	n = max(0, n)
	l.total.AllowN(now, n)
	return n
}
