// Package upstream asks substitute servers of any kind for narinfos.
//
// An upstream answers /HASH.narinfo and the URLs in that, and nothing else is expected of it:
// guix publish, Cuirass, another Nar Herder, a web server with files, or a directory.
package upstream

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/peer"
)

var (
	// ErrUnknown reports that no upstream could tell whether it has an item. The reasons, one
	// for each upstream, are part of its text.
	ErrUnknown = errors.New("no upstream can tell whether it has the item")
	// ErrLoop reports a request that has already passed this server. It comes with ErrUnknown.
	ErrLoop = errors.New("the request has come back to this server: one of the upstreams is this server, or has it as an upstream")
)

// Answer is what the upstreams say about an item.
type Answer struct {
	// Narinfo is that of the first upstream that has the item; nil if none has it. Its text is
	// the upstream's, with the blocks that follow the signature.
	Narinfo *narinfo.Narinfo
	// Upstream is the one that sent it; nil if none has it.
	Upstream *Upstream
	// MaxAge is how long the answer may be cached, negative if the upstream doesn't say. If no
	// upstream has the item, it is the smallest that any says, and at most a minute if some
	// couldn't tell.
	MaxAge time.Duration
	// Err is nil for a narinfo, [nar-herder/storage.ErrNotFound] if no upstream that could tell
	// has the item, and an [ErrUnknown] if none could tell.
	Err error
}

// Options describe the upstreams of a server.
type Options struct {
	// URLs are those of the upstreams, in order of preference: http, https, or file with a
	// directory. They may have a user and password.
	URLs []*url.URL
	// Keys are authorized to sign narinfos; nil for any key.
	Keys *signing.Keys
	// Instance is the random name of this instance, for the header Via.
	Instance string
	// AllowPrivateRedirects makes it follow redirects to any server, not only to the upstream
	// itself and to public addresses over https.
	AllowPrivateRedirects bool
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock of records; nil for the system's.
	Now func() time.Time
	// PreferWait is how long the answers of more preferred upstreams are awaited once another
	// has the item; SilenceTimeout how long a connection, and each answer after the one before
	// it, may take; AnswerTimeout when Ask gives up. 0 for 1, 5 and 10 seconds.
	PreferWait, SilenceTimeout, AnswerTimeout time.Duration

	// Those of tests; nil for the usual.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	tls  *tls.Config
}

// Set is the upstreams of a server, in order of preference. Its methods may be called from
// several goroutines at once.
type Set struct {
	options   Options
	upstreams []*Upstream
	logged    logonce.Filter
	settler   *settler
	asked     atomic.Uint64 // items
}

// New makes a set. It connects to no upstream before [Set.Ask] or [Set.Run].
func New(options Options) *Set {
	options.PreferWait = cmp.Or(options.PreferWait, time.Second)
	options.SilenceTimeout = cmp.Or(options.SilenceTimeout, 5*time.Second)
	options.AnswerTimeout = cmp.Or(options.AnswerTimeout, 10*time.Second)
	if options.Now == nil {
		options.Now = time.Now
	}
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	s := &Set{options: options, settler: newSettler()}
	for n, base := range options.URLs {
		if s.Find(peer.Name(base)) == nil {
			s.upstreams = append(s.upstreams, newUpstream(base, n+1, &s.options))
		}
	}
	return s
}

// Upstreams returns the upstreams in order of preference.
func (s *Set) Upstreams() []*Upstream { return s.upstreams }

// Find returns the upstream with the name that [Upstream.String] returns; nil if the set has
// none.
func (s *Set) Find(name string) *Upstream {
	for _, u := range s.upstreams {
		if u.name == name {
			return u
		}
	}
	return nil
}

// Run probes the upstreams once, and those that are not up until they answer. It returns when
// ctx ends.
func (s *Set) Run(ctx context.Context) {
	var running sync.WaitGroup
	for _, u := range s.upstreams {
		running.Go(func() { u.watch(ctx) })
	}
	running.Wait()
}

// Close closes the connections. Requests in flight fail.
func (s *Set) Close() {
	for _, u := range s.upstreams {
		u.close()
	}
}

// Status returns the state of each upstream, in order of preference.
func (s *Set) Status() []Status {
	all := make([]Status, len(s.upstreams))
	for i, u := range s.upstreams {
		all[i] = u.status()
		all[i].URL, all[i].Label = u.name, u.label
	}
	return all
}
