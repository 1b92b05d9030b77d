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

// serveHealth says whether requests can be answered: 200, or 503 with what is
// broken. live only says that the program runs.
func (s *Server) serveHealth(ctx *fasthttp.RequestCtx, live bool) {
	ctx.Response.Header.Set("Cache-Control", "no-store")
	if live {
		s.text(ctx, "application/json", liveBody)
		return
	}
	status, body, err := s.healthAnswer(s.live)
	if err != nil {
		s.fault(ctx, "write the health", err)
		return
	}
	s.text(ctx, "application/json", string(body))
	ctx.Response.SetStatusCode(status)
}

// liveBody is the answer at /health/live.
const liveBody = `{"status": "ok"}` + "\n"

// healthAnswer returns the status and the body, JSON with a line break, of the answer at
// /health, here and on the control listener. It takes healthDeadline at the most.
func (s *Server) healthAnswer(ctx context.Context) (status int, body []byte, err error) {
	result, age := s.probeHealth(ctx)
	state := struct {
		Age      int64    `json:"age_seconds"`
		Database string   `json:"database"`
		Status   string   `json:"status"`
		Storage  string   `json:"storage"`
		Warnings []string `json:"warnings,omitempty"`
		Mirror   any      `json:"mirror,omitempty"`
	}{Age: int64(age.Seconds()), Status: failing, Database: result.database, Storage: result.storage}
	status = fasthttp.StatusServiceUnavailable
	if result.database == healthy && result.storage == healthy {
		status, state.Status = fasthttp.StatusOK, healthy
	}
	if s.options.Warnings != nil {
		state.Warnings = s.options.Warnings()
	}
	if s.options.Mirror != nil {
		state.Mirror = s.options.Mirror()
	}
	if body, err = json.Marshal(state); err != nil {
		return 0, nil, err
	}
	return status, append(body, '\n'), nil
}
