package httpapi

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"html/template"

	"github.com/valyala/fasthttp"
)

//go:embed home.html
var homeText string

var homePage = template.Must(template.New("home").Parse(homeText))

// serveHome answers browsers. Others get 404: so a server says that it has no
// page of its own.
func (s *Server) serveHome(ctx *fasthttp.RequestCtx) route {
	if !bytes.Contains(ctx.Request.Header.Peek("Accept"), []byte("text/html")) {
		s.notFound(ctx, "this is a substitute server: ask for /HASH.narinfo")
		return routeHome
	}
	totals, err := s.totals()
	if err != nil {
		s.fault(ctx, "read the totals", err)
		return routeHome
	}
	var page bytes.Buffer
	err = homePage.Execute(&page, struct {
		Items      int64
		SigningKey bool
		Version    string
	}{totals.Items, s.options.SigningKey != nil, s.options.Version})
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

// serveHealth answers at one of the paths of the health.
func (s *Server) serveHealth(ctx *fasthttp.RequestCtx, path string) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	if path == livePath {
		s.text(ctx, "application/json", liveBody)
		return
	}
	status, body, err := s.healthAnswer(s.live, path == readyPath)
	if err != nil {
		s.fault(ctx, "write the health", err)
		return
	}
	s.text(ctx, "application/json", string(body))
	ctx.Response.SetStatusCode(status)
}

// liveBody is the answer at livePath.
const liveBody = `{"status": "ok"}` + "\n"

// healthAnswer returns the status and the body, JSON with a line break, of the answer at
// healthPath or readyPath, here and on the control listener. It takes healthDeadline at
// the most, once the server serves.
func (s *Server) healthAnswer(ctx context.Context, ready bool) (status int, body []byte, err error) {
	state := s.health.state(ctx)
	status = fasthttp.StatusOK
	if len(state.Failing) > 0 {
		status = fasthttp.StatusServiceUnavailable
	}
	if ready {
		state = healthState{Status: state.Status}
	} else if s.options.Mirror != nil {
		state.Mirror = s.options.Mirror()
	}
	if body, err = json.Marshal(state); err != nil {
		return 0, nil, err
	}
	return status, append(body, '\n'), nil
}
