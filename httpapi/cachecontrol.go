package httpapi

import (
	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/respond"
)

// setNarCacheControl lets caches keep an item's nar, or its content, for as long as
// its narinfo. kind is the type of a cached nar, or "".
//
// Caches must revalidate withdrawn items, which are removed soon. An answer that has
// the header already keeps it.
func (s *Server) setNarCacheControl(ctx *fasthttp.RequestCtx, item *nars, kind string) {
	switch ctx.Response.StatusCode() {
	case fasthttp.StatusOK, fasthttp.StatusPartialContent, fasthttp.StatusNotModified:
	case fasthttp.StatusNotFound:
		s.setMissingCacheControl(ctx)
		return
	default:
		return
	}
	value := s.cacheControls.Nar
	if kind != "" {
		value = s.cacheControls.Cached[kind]
	}
	if !item.WithdrawnAt.IsZero() {
		value = respond.Revalidate
	}
	if value != "" && len(ctx.Response.Header.Peek(fasthttp.HeaderCacheControl)) == 0 {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, value)
	}
}

// setMissingCacheControl lets caches keep a 404 for the negative TTL, unless the answer has the
// header already.
func (s *Server) setMissingCacheControl(ctx *fasthttp.RequestCtx) {
	if s.cacheControls.Missing != "" && ctx.Response.StatusCode() == fasthttp.StatusNotFound && len(ctx.Response.Header.Peek(fasthttp.HeaderCacheControl)) == 0 {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, s.cacheControls.Missing)
	}
}
