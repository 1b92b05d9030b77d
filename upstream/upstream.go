// Package upstream asks substitute servers of any kind for narinfos.
//
// An upstream answers /HASH.narinfo and the URLs in that, and nothing else is expected of it:
// guix publish, Cuirass, another Nar Herder, a web server with files, or a directory.
package upstream

import (
	"context"
	"errors"
	"net/url"
	"time"

	"nar-herder/narinfo"
)

// ErrUnknown reports that no upstream could tell whether it has an item.
var ErrUnknown = errors.New("no upstream could be asked")

// Answer is what the upstreams say about an item.
type Answer struct {
	// Narinfo is that of the first upstream that has the item; nil if none has it.
	Narinfo *narinfo.Narinfo
	// Upstream is the one that sent it; nil if none has it.
	Upstream *Upstream
	// MaxAge is how long the answer may be cached, negative if the upstream doesn't say. If
	// none has the item, it is the smallest that any upstream says.
	MaxAge time.Duration
	// Err is nil for a narinfo, [nar-herder/storage.ErrNotFound] if certainly no upstream has
	// the item, and [ErrUnknown], with reasons, if that can't be told.
	Err error
}

// Upstream is one substitute server.
type Upstream struct {
	base *url.URL
}

// String returns the URL without user and password: the origin that the index records.
func (u *Upstream) String() string { return u.base.Redacted() }

// Set is the upstreams of a server, in order of preference.
type Set struct {
	upstreams []*Upstream
}

// Ask asks all upstreams for narinfos, and calls deliver once for each hash, as soon as its
// answer is known; calls may be concurrent. It returns after the last call. Narinfos are of the
// item that was asked for, and their signatures are authorized. via is the Via header of a
// client's request.
func (s *Set) Ask(ctx context.Context, hashes []narinfo.PathHash, via []string, deliver func(narinfo.PathHash, Answer)) {
	for _, hash := range hashes {
		deliver(hash, Answer{Err: ErrUnknown, MaxAge: -1})
	}
}
