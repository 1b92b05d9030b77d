package httpapi

import (
	"bytes"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/health"
	"nar-herder/httpapi/home"
	"nar-herder/httpapi/respond"
)

// serveHome answers browsers with a page, and other clients with 404.
func (s *Server) serveHome(ctx *fasthttp.RequestCtx) route {
	if !bytes.Contains(ctx.Request.Header.Peek("Accept"), []byte("text/html")) {
		respond.NotFound(ctx, "this is a substitute server: ask for /HASH.narinfo")
		return routeHome
	}
	totals, err := s.totals.Get()
	if err != nil {
		s.fault(ctx, "read the totals", err)
		return routeHome
	}
	page, err := home.Page(home.Content{Items: totals.Items, Keys: s.options.SigningKeys.Names(), Version: s.options.Version})
	if err != nil {
		s.fault(ctx, "write the home page", err)
		return routeHome
	}
	ctx.Response.Header.Set("Vary", "Accept")
	ctx.Response.Header.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	ctx.Response.Header.SetContentType("text/html; charset=utf-8")
	ctx.Response.SetBody(page)
	return routeHome
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
