package httpapi

import (
	"context"
	"errors"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/itemcache"
	"nar-herder/httpapi/prepared"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// serveNarinfo answers with the narinfo, and returns whether that was in memory as the route.
func (s *Server) serveNarinfo(ctx *fasthttp.RequestCtx, hash narinfo.PathHash) route {
	found, ok, generation := s.answers.Get(hash)
	route := routePrepared
	if !ok || found.HasExpired() {
		route = routeNarinfo
		if ok {
			s.answers.Forget(hash)
			_, _, generation = s.answers.Get(hash)
		}
		err := storage.ErrNotFound
		isPending := s.options.Upstreams != nil && s.options.Upstreams.IsPending(hash)
		if found.CacheControl = s.cacheControls.missing; !isPending {
			engine.Enter(ctx, s.pool)
			found, err = s.answer(s.live, hash)
		}
		if s.options.Upstreams != nil && (isUnknown(err) || err == nil && found.HasExpired()) {
			found, err = s.askUpstreams(ctx, hash, found, err == nil)
		}
		if errors.Is(err, storage.ErrNotFound) {
			respond.NotFound(ctx, noNarinfo)
			found.SetCacheControl(ctx)
			return route
		}
		if err != nil {
			s.fault(ctx, "look up a narinfo", err)
			return route
		}
		if !isPending { // or else the item may have been imported before the generation was read
			s.answers.Put(hash, found, generation)
		}
	}
	ctx.Response.Header.SetContentType("application/x-nix-narinfo")
	found.SetCacheControl(ctx)
	ctx.Response.SetBodyRaw(found.Body) // which is never modified
	return route
}

// answer makes the answer for an item's narinfo, also for a [storage.ErrNotFound].
func (s *Server) answer(ctx context.Context, hash narinfo.PathHash) (made prepared.Answer, err error) {
	made.CacheControl, made.TTL = s.cacheControls.narinfo, s.cacheControls.ttl
	if s.options.Cached == nil {
		made.Body, made.Until, err = s.items.TextUntil(ctx, hash)
	} else {
		var types []string
		if made.Body, types, made.Until, err = s.options.Cached.Text(ctx, hash); len(types) > 0 {
			ttl := s.options.Cached.TTL(types)
			if made.CacheControl = maxAge(ttl); ttl != nil {
				made.TTL = *ttl
			}
		}
	}
	if errors.Is(err, storage.ErrLost) {
		made.CacheControl = s.cacheControls.lost
	} else if errors.Is(err, storage.ErrNotFound) {
		made.CacheControl = s.cacheControls.missing
	}
	if s.options.Upstreams == nil {
		made.Until = time.Time{}
	}
	return made, err
}

// Forget drops an item that has changed from memory.
func (s *Server) Forget(hash narinfo.PathHash) {
	s.nars.Forget(hash)
	s.answers.Forget(hash)
}

// noNarinfo is not kept in memory, so that an import is visible at once.
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
