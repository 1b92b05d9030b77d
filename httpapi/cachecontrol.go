package httpapi

import (
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/respond"
)

// cacheControls are values of Cache-Control, made once. An empty one is left out.
type cacheControls struct {
	narinfo string
	nar     string
	missing string // of a 404 for a narinfo, nar or file
	// cached are those of nars in further compressions, by type.
	cached map[string]string
}

func newCacheControls(options *Options) cacheControls {
	ttl := options.TTLs.Advertised()
	c := cacheControls{narinfo: maxAge(ttl), nar: public(ttl), missing: maxAge(options.NegativeTTL), cached: make(map[string]string)}
	if options.Cached != nil {
		for _, kind := range []string{"zstd", "lzip", "gzip"} {
			c.cached[kind] = public(options.Cached.TTL([]string{kind}))
		}
	}
	return c
}

// public is the Cache-Control header that also lets shared caches, such as those of
// a CDN, keep an answer.
func public(ttl *time.Duration) string {
	if ttl == nil {
		return ""
	}
	return "public, " + maxAge(ttl)
}

// setNarCacheControl lets caches keep an item's nar, or what is in it, for as long as
// its narinfo. kind is the type of a cached nar, or "".
//
// A withdrawn item is removed soon, so caches have to ask for it each time. An answer
// that has the header already keeps it.
func (s *Server) setNarCacheControl(ctx *fasthttp.RequestCtx, item *nars, kind string) {
	switch ctx.Response.StatusCode() {
	case fasthttp.StatusOK, fasthttp.StatusPartialContent, fasthttp.StatusNotModified:
	case fasthttp.StatusNotFound:
		s.setMissingCacheControl(ctx)
		return
	default:
		return
	}
	value := s.cacheControls.nar
	if kind != "" {
		value = s.cacheControls.cached[kind]
	}
	if !item.WithdrawnAt.IsZero() {
		value = respond.Revalidate
	}
	if value != "" && len(ctx.Response.Header.Peek(fasthttp.HeaderCacheControl)) == 0 {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, value)
	}
}

// setMissingCacheControl lets caches keep a 404 for the negative time to live.
func (s *Server) setMissingCacheControl(ctx *fasthttp.RequestCtx) {
	if s.cacheControls.missing != "" && ctx.Response.StatusCode() == fasthttp.StatusNotFound {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, s.cacheControls.missing)
	}
}
