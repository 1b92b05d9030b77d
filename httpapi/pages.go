package httpapi

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/health"
	"nar-herder/httpapi/respond"
)

//go:embed home.html
var homeText string

var homePage = template.Must(template.New("home").Parse(homeText))

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
	keys := make([]string, len(s.options.SigningKeys))
	for i := range keys {
		keys[i] = signingKeyName(i)
	}
	var page bytes.Buffer
	err = homePage.Execute(&page, struct {
		Items   int64
		Keys    []string
		Version string
	}{totals.Items, keys, s.options.Version})
	if err != nil {
		s.fault(ctx, "write the home page", err)
		return routeHome
	}
	ctx.Response.Header.Set("Vary", "Accept")
	ctx.Response.Header.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'")
	ctx.Response.Header.SetContentType("text/html; charset=utf-8")
	ctx.Response.SetBody(page.Bytes())
	return routeHome
}

// signingKeyName returns the name of the Nth public key, counted from 0.
func signingKeyName(n int) string {
	if n == 0 {
		return "signing-key.pub"
	}
	return fmt.Sprintf("signing-key-%d.pub", n+1)
}

// signingKey returns the public key with a name, or "" if there is none.
func (s *Server) signingKey(name string) string {
	for i, key := range s.options.SigningKeys {
		if name == signingKeyName(i) {
			return key
		}
	}
	return ""
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
