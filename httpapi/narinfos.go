package httpapi

import (
	"context"
	"errors"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/itemcache"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// serveNarinfo answers with the narinfo.
func (s *Server) serveNarinfo(ctx *fasthttp.RequestCtx, hash narinfo.PathHash) {
	found, ok, generation := s.answers.Get(hash)
	if !ok || found.hasExpired() {
		if ok {
			s.answers.Forget(hash)
			_, _, generation = s.answers.Get(hash)
		}
		engine.Enter(ctx, s.pool)
		var err error
		found, err = s.answer(s.live, hash)
		if s.options.Upstreams != nil && (isUnknown(err) || err == nil && found.hasExpired()) {
			found, err = s.askUpstreams(ctx, hash, found, err == nil)
		}
		if errors.Is(err, storage.ErrNotFound) {
			respond.NotFound(ctx, noNarinfo)
			found.setCacheControl(ctx)
			return
		}
		if err != nil {
			s.fault(ctx, "look up a narinfo", err)
			return
		}
		s.answers.Put(hash, found, generation)
	}
	ctx.Response.Header.SetContentType("application/x-nix-narinfo")
	found.setCacheControl(ctx)
	ctx.Response.SetBodyRaw(found.body) // which is never modified
}

// madeAnswer is a prepared answer for a narinfo.
type madeAnswer struct {
	body         []byte
	cacheControl string
	// until is when the answer of an upstream expires, and ttl bounds how long clients may
	// cache it, instead of cacheControl. It is zero for an item that is not of an upstream.
	until time.Time
	ttl   time.Duration
}

func (a *madeAnswer) hasExpired() bool { return !a.until.IsZero() && !time.Now().Before(a.until) }

func (a *madeAnswer) setCacheControl(ctx *fasthttp.RequestCtx) {
	if a.until.IsZero() {
		if a.cacheControl != "" {
			ctx.Response.Header.Set(fasthttp.HeaderCacheControl, a.cacheControl)
		}
		return
	}
	left := max(0, min(a.ttl, time.Until(a.until)))
	ctx.Response.Header.SetBytesV(fasthttp.HeaderCacheControl, strconv.AppendInt([]byte("max-age="), int64(left/time.Second), 10))
}

// answer makes the answer for an item's narinfo, also for a [storage.ErrNotFound].
func (s *Server) answer(ctx context.Context, hash narinfo.PathHash) (made madeAnswer, err error) {
	made.cacheControl, made.ttl = s.cacheControls.narinfo, s.cacheControls.ttl
	if s.options.Cached == nil {
		made.body, made.until, err = s.items.TextUntil(ctx, hash)
	} else {
		var types []string
		if made.body, types, made.until, err = s.options.Cached.Text(ctx, hash); len(types) > 0 {
			ttl := s.options.Cached.TTL(types)
			if made.cacheControl = maxAge(ttl); ttl != nil {
				made.ttl = *ttl
			}
		}
	}
	switch {
	case errors.Is(err, storage.ErrLost):
		made.cacheControl = s.cacheControls.lost
	case errors.Is(err, storage.ErrNotFound):
		made.cacheControl = s.cacheControls.missing
	}
	if s.options.Upstreams == nil {
		made.until = time.Time{}
	}
	return made, err
}

// Forget drops an item that has changed from memory.
func (s *Server) Forget(hash narinfo.PathHash) {
	s.nars.Forget(hash)
	s.answers.Forget(hash)
}

// noNarinfo is the answer for an item that is certainly not in the index. It is not kept in
// memory, so that an import is visible at once.
const noNarinfo = "there is no narinfo for that hash"

// Follow drops outdated answers from memory until the context ends.
func (s *Server) Follow(ctx context.Context, changes itemcache.Changes) {
	itemcache.Follow(ctx, changes, s.log, func(change *index.Change) {
		s.nars.Forget(change.Hash)
		if change.Kind != index.StorageChanged {
			s.answers.Forget(change.Hash)
		}
	}, s.peers.Notify, s.answers, s.nars)
}
