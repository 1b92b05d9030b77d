package httpapi

import (
	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/health"
	"nar-herder/httpapi/respond"
)

// pageRoutes are the routes of the pages for browsers, by the first segment of their paths.
var pageRoutes = map[string]route{"": routeHome, "status": routeStatus, "search": routeSearch, "item": routeItem, "page": routeAsset}

// servePage answers with a page for browsers, or a file that pages use.
func (s *Server) servePage(ctx *fasthttp.RequestCtx, segments []string) route {
	if err := s.options.Pages.Serve(s.live, ctx, segments); err != nil {
		s.fault(ctx, "answer with a page", err)
	}
	return pageRoutes[segments[0]]
}

// serveHealth answers at one of the health's paths.
func (s *Server) serveHealth(ctx *fasthttp.RequestCtx, path string) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	if path == health.LivePath {
		respond.Text(ctx, "application/json", health.LiveBody)
		return
	}
	status, body, err := s.health.Answer(s.live, path == health.ReadyPath)
	if err != nil {
		s.fault(ctx, "write the health", err)
		return
	}
	respond.Text(ctx, "application/json", string(body))
	ctx.Response.SetStatusCode(status)
}
