package httpapi

import (
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
)

// cacheControls are prepared values of Cache-Control. Empty ones are not sent.
type cacheControls struct {
	narinfo string
	nar     string
	missing string            // of a 404 for a narinfo, nar or file
	lost    string            // of a 404 for the narinfo of an item whose nars are lost, or for a nar that an upstream lacks
	ttl     time.Duration     // bounds that of the narinfo of an upstream's item
	cached  map[string]string // of cached nars, by type
}

// lostTTL is the longest time that clients may cache that an item is hidden because its nars are
// lost, or that an upstream lacks a nar: that may be repaired, or be made, at any time.
const lostTTL = 2 * time.Minute

func newCacheControls(options *Options) cacheControls {
	ttl := options.TTLs.Advertised()
	c := cacheControls{narinfo: maxAge(ttl), nar: public(ttl), missing: maxAge(options.NegativeTTL), cached: make(map[string]string)}
	if c.ttl = narinfo.UnadvertisedTTL; ttl != nil {
		c.ttl = *ttl
	}
	if c.lost = c.missing; options.NegativeTTL != nil && *options.NegativeTTL > lostTTL {
		ttl := lostTTL
		c.lost = maxAge(&ttl)
	}
	if options.Cached != nil {
		for _, kind := range []string{"zstd", "lzip", "gzip"} {
			c.cached[kind] = public(options.Cached.TTL([]string{kind}))
		}
	}
	return c
}

// public returns the Cache-Control header that also allows shared caches, such as a CDN.
func public(ttl *time.Duration) string {
	if ttl == nil {
		return ""
	}
	return "public, " + maxAge(ttl)
}

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

// setMissingCacheControl lets caches keep a 404 for the negative TTL, unless the answer has the
// header already.
func (s *Server) setMissingCacheControl(ctx *fasthttp.RequestCtx) {
	if s.cacheControls.missing != "" && ctx.Response.StatusCode() == fasthttp.StatusNotFound && len(ctx.Response.Header.Peek(fasthttp.HeaderCacheControl)) == 0 {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, s.cacheControls.missing)
	}
}
