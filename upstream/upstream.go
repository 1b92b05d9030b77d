// Package upstream asks substitute servers of any kind for narinfos.
//
// An upstream answers /HASH.narinfo and the URLs in that, and nothing else is expected of it:
// guix publish, Cuirass, another Nar Herder, a web server with files, or a directory.
package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net/url"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/peer"
)

var (
	// ErrUnknown reports that no upstream could tell whether it has an item. The reasons, one
	// for each upstream, are part of its text.
	ErrUnknown = errors.New("no upstream could be asked")
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
}

// Upstream is one substitute server.
type Upstream struct {
	base *url.URL
	name string
}

// String returns the URL without user and password: the origin that the index records.
func (u *Upstream) String() string { return u.name }

// URL returns the URL, which may have a user and password.
func (u *Upstream) URL() *url.URL { return u.base }

// IsUp reports whether the upstream is asked now. If it isn't, it has failed lately, and is
// probed in the background until it answers.
func (u *Upstream) IsUp() bool { return true }

// Report records the outcome of a request that was not one of Ask, such as for a nar. nil means
// that the upstream answered, with any status. An error means that it couldn't be reached, or
// was silent, after that time.
func (u *Upstream) Report(err error, took time.Duration) {}

// Status is the state of an upstream.
type Status struct {
	// URL has no user and password.
	URL string
	// Up is as of [Upstream.IsUp], and Since when it became so.
	Up    bool
	Since time.Time
	// Err is the last failure while it is not up; nil otherwise.
	Err error
}

// Set is the upstreams of a server, in order of preference. Its methods may be called from
// several goroutines at once.
type Set struct {
	upstreams []*Upstream
}

// New makes a set. It connects to no upstream before [Set.Ask] or [Set.Run].
func New(options Options) *Set {
	s := new(Set)
	for _, base := range options.URLs {
		s.upstreams = append(s.upstreams, &Upstream{base: base, name: peer.Name(base)})
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

// Ask asks all upstreams for narinfos, and calls deliver once for each hash, as soon as its
// answer is known; calls may be concurrent, and should not block. It returns after the last
// call, and soon after the end of ctx. Narinfos are of the item that was asked for, and their
// signatures are authorized. via is the Via header of a client's request.
func (s *Set) Ask(ctx context.Context, hashes []narinfo.PathHash, via []string, deliver func(narinfo.PathHash, Answer)) {
	for _, hash := range hashes {
		deliver(hash, Answer{Err: ErrUnknown, MaxAge: -1})
	}
}

// Run probes the upstreams once, and those that are not up until they answer. It returns when
// ctx ends.
func (s *Set) Run(ctx context.Context) { <-ctx.Done() }

// Close closes the connections. It is called after the last call of Ask has returned.
func (s *Set) Close() {}

// Status returns the state of each upstream, in order of preference.
func (s *Set) Status() []Status {
	all := make([]Status, len(s.upstreams))
	for i, u := range s.upstreams {
		all[i] = Status{URL: u.name, Up: u.IsUp()}
	}
	return all
}

// Describe implements [prometheus.Collector].
func (s *Set) Describe(descs chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (s *Set) Collect(metrics chan<- prometheus.Metric) {}
