// Package files opens the files of items at upstreams, and at other instances.
package files

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/storage"
	"nar-herder/upstream"
)

// Options of [New].
type Options struct {
	// Upstreams are those of the server, in order of preference.
	Upstreams []*upstream.Upstream
	// Self describes this instance to them.
	Self peer.Self
	// Peers are other instances: the mirrored one, and those that removals depend on.
	Peers peer.Peers
	// Origins returns the upstreams by their numbers, see [nar-herder/storage/index.Index.Origins].
	Origins func(ctx context.Context) (map[int64]string, error)
	// Log may be nil.
	Log *slog.Logger
}

// order orders the servers.
type order struct {
	options   Options
	upstreams []*server
	peers     []failover.Server

	mu      sync.Mutex
	origins map[int64]string
	logged  logonce.Filter
}

// New makes a source of files. It asks the upstream that an item came from first, then the other
// upstreams, then the peers. Items of no upstream are at the peers, or else at any upstream.
// Upstreams that are down are skipped.
func New(options Options) *failover.Source {
	o := &order{options: options}
	for _, u := range options.Upstreams {
		if at := u.URL(); at.Scheme == "file" {
			o.upstreams = append(o.upstreams, &server{folder(at.Path), u})
		} else {
			o.upstreams = append(o.upstreams, &server{peer.New(at, options.Self), u})
		}
	}
	for _, p := range options.Peers {
		o.peers = append(o.peers, p)
	}
	if o.options.Log == nil {
		o.options.Log = slog.New(slog.DiscardHandler)
	}
	return failover.New(o.servers)
}

// servers returns the servers that may have an item's files.
func (o *order) servers(ctx context.Context, item *storage.Item) []failover.Server {
	servers := make([]failover.Server, 0, len(o.upstreams)+len(o.peers))
	if item.Origin == 0 {
		servers = append(servers, o.peers...)
	}
	origin := o.origin(ctx, item.Origin)
	for _, u := range o.upstreams {
		if u.upstream.String() == origin {
			servers = slices.Insert(servers, 0, failover.Server(u))
		} else {
			servers = append(servers, u)
		}
	}
	if item.Origin != 0 {
		servers = append(servers, o.peers...)
	}
	return servers
}

// origin returns the name of the upstream with that number, or "".
func (o *order) origin(ctx context.Context, number int64) string {
	if number == 0 {
		return ""
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	name, ok := o.origins[number]
	if ok {
		return name
	}
	origins, err := o.options.Origins(ctx)
	if err == nil {
		o.origins = origins
		o.logged.Over(o.options.Log, "the upstreams that items came from are known again")
		return origins[number]
	}
	const text = "can't find out which upstream an item came from: asking all in order"
	if ctx.Err() == nil && o.logged.IsDue(text, time.Now()) {
		o.options.Log.Warn(text, "error", err)
	}
	return ""
}
