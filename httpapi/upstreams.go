package httpapi

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/ahead"
	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/prepared"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/upstream"
	"nar-herder/upstream/lookup"
)

// isUnknown reports whether an upstream may have an item although the index has no narinfo of it.
func isUnknown(err error) bool {
	return errors.Is(err, storage.ErrNotFound) && !errors.Is(err, storage.ErrLost)
}

// askUpstreams makes the answer for an item that is unknown, or known and expired. Meanwhile it
// asks for the narinfos that the client has requested after this one.
func (s *Server) askUpstreams(ctx *fasthttp.RequestCtx, hash narinfo.PathHash, found prepared.Answer, known bool) (prepared.Answer, error) {
	engine.LeaveLoop(ctx)
	answer, err := lookup.Answer{}, error(lookup.ErrBusy)
	asker, ok := s.asker(ctx)
	if ok {
		asker.Next = func() []narinfo.PathHash { return s.requestedNext(ctx) }
		answer, err = s.options.Upstreams.LookUp(s.live, hash, asker)
	}
	switch {
	case known && err == nil && bytes.HasPrefix(found.Body, answer.Text):
		found.Until = answer.Until // and the blocks of cached nars stay
	case err == nil:
		found = prepared.Answer{Body: answer.Text, CacheControl: s.cacheControls.Narinfo, Until: answer.Until, TTL: s.cacheControls.TTL}
	case errors.Is(err, storage.ErrNotFound):
		found.Until, found.TTL = answer.Until, lookup.LongestTTL
		return found, err
	case known:
		found.Until = time.Now().Add(lookup.DownTTL)
	case !ok:
		return prepared.Answer{CacheControl: respond.NoStore}, storage.ErrNotFound
	default:
		return found, err
	}
	return found, nil
}

// addItem looks up an item that is unknown, for a request for its nar.
func (s *Server) addItem(ctx *fasthttp.RequestCtx, hash narinfo.PathHash) (*nars, error) {
	engine.LeaveLoop(ctx)
	asker, ok := s.asker(ctx)
	if !ok {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, respond.NoStore)
		return nil, storage.ErrNotFound
	}
	answer, err := s.options.Upstreams.Add(s.live, hash, asker)
	if err == nil {
		return s.item(s.live, hash)
	}
	if errors.Is(err, storage.ErrNotFound) {
		(&prepared.Answer{Until: answer.Until, TTL: lookup.LongestTTL}).SetCacheControl(ctx)
	}
	return nil, err
}

// asker returns who asks the upstreams. It returns false if the request has passed this instance
// before: the first time, all upstreams are asked.
func (s *Server) asker(ctx *fasthttp.RequestCtx) (asker lookup.Asker, ok bool) {
	asker.Client = clients.NetworkOf(s.options.TrustedProxies.Client(ctx))
	asker.Via, ok = s.via(ctx)
	return asker, ok
}

// requestedNext returns the items of the narinfos that the client has requested since the last
// call, without those that have a prepared answer.
func (s *Server) requestedNext(ctx *fasthttp.RequestCtx) []narinfo.PathHash {
	return slices.DeleteFunc(ahead.Narinfos(engine.Ahead(ctx)), func(hash narinfo.PathHash) bool {
		found, ok, _ := s.answers.Get(hash)
		return ok && !found.HasExpired()
	})
}

// upstreamFailed answers if the upstreams, or the limits of questions to them, are the reason
// of a failure, and reports whether they are.
func (s *Server) upstreamFailed(ctx *fasthttp.RequestCtx, err error) bool {
	switch {
	case errors.Is(err, lookup.ErrBusy):
		ctx.Response.Header.Set("Retry-After", strconv.Itoa(int(lookup.RetryAfter/time.Second)))
		respond.Fail(ctx, fasthttp.StatusServiceUnavailable, "too many unknown items were requested, try again later")
	case errors.Is(err, upstream.ErrUnknown):
		respond.Fail(ctx, fasthttp.StatusBadGateway, "this item is not known here, and no upstream can be asked now")
	default:
		return false
	}
	return true
}
