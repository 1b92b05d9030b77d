package health

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/respond"
)

// Control answers requests of the administrator: /metrics, /health and the paths below it,
// /debug/pprof/, and pages for browsers. It has its own listeners, and answers before there is a server. Its
// requests are not counted in the metrics.
type Control struct {
	host   string
	log    *slog.Logger
	engine *http.Server
	// attached is nil until a server is attached. Until then, starting returns the state.
	attached atomic.Pointer[attached]
	starting atomic.Pointer[func() any]
}

// attached are the health, the metrics and the pages of a server.
type attached struct {
	health         *Health
	metrics, pages http.Handler
}

// controlGrace is how long answers in flight may take once a Control is closed.
// Profiles take much longer, and are cut.
const controlGrace = 100 * time.Millisecond

// ServeControl answers requests from the listeners until Close. Requests over the
// loopback interface must name an IP address, localhost, or host: any other name can
// belong to a web page that resolves it to this machine (DNS rebinding).
func ServeControl(host string, log *slog.Logger, listeners ...net.Listener) *Control {
	c := &Control{host: host, log: log}
	mux := http.NewServeMux()
	mux.HandleFunc("/metrics", c.serveMetrics)
	mux.HandleFunc(Path, func(w http.ResponseWriter, r *http.Request) { c.serveHealth(w, r, false) })
	mux.HandleFunc(ReadyPath, func(w http.ResponseWriter, r *http.Request) { c.serveHealth(w, r, true) })
	mux.HandleFunc(LivePath, func(w http.ResponseWriter, _ *http.Request) { c.json(w, http.StatusOK, []byte(LiveBody)) })
	mux.HandleFunc("/", c.servePages)
	// Without cmdline, as there may be passwords among the arguments.
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	c.engine = &http.Server{
		Handler:           c.guard(mux),
		ReadHeaderTimeout: engine.HeaderTimeout, IdleTimeout: engine.IdleTimeout, MaxHeaderBytes: engine.ReadBuffer,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	for _, listener := range listeners {
		go func() {
			if err := c.engine.Serve(listener); err != http.ErrServerClosed {
				log.Error("the control listener has failed; restart the server to use it again", "address", listener.Addr().String(), "error", err)
			}
		}()
	}
	return c
}

// Starting sets the state that /health answers as JSON, with status 503, until a
// server is attached. With nil, the status in it is "starting".
func (c *Control) Starting(state func() any) {
	if state == nil {
		c.starting.Store(nil)
		return
	}
	c.starting.Store(&state)
}

// Attach makes /health and /metrics answer for a server, and all other paths by its pages; nil
// for none.
func (c *Control) Attach(health *Health, registry *prometheus.Registry, pages http.Handler) {
	if pages == nil {
		pages = http.NotFoundHandler()
	}
	c.attached.Store(&attached{health, promhttp.HandlerFor(registry, promhttp.HandlerOpts{}), pages})
}

// Close closes the listeners and, after a moment, all connections. It may be called
// again.
func (c *Control) Close() {
	grace, cancel := context.WithTimeout(context.Background(), controlGrace)
	defer cancel()
	if c.engine.Shutdown(grace) != nil {
		_ = c.engine.Close()
	}
}

// guard refuses requests that a web page may have made.
func (c *Control) guard(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Cache-Control", "no-store")
		site := r.Header.Get("Sec-Fetch-Site")
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD are answered here", http.StatusMethodNotAllowed)
		case site != "" && site != "none" && site != "same-origin":
			http.Error(w, "requests from pages of other sites are refused", http.StatusForbidden)
		case !c.mayName(r):
			http.Error(w, "on this machine, name the server by an IP address, localhost, or the value of --control-host", http.StatusForbidden)
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// mayName reports whether the request's Host header may name this listener.
func (c *Control) mayName(r *http.Request) bool {
	local, ok := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if !ok || !local.IP.IsLoopback() {
		return true
	}
	host := r.Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	return host == "" || strings.EqualFold(host, "localhost") || strings.EqualFold(host, c.host) || net.ParseIP(host) != nil
}

func (c *Control) serveMetrics(w http.ResponseWriter, r *http.Request) {
	if a := c.attached.Load(); a != nil {
		a.metrics.ServeHTTP(w, r)
	} else {
		refuseStarting(w)
	}
}

func (c *Control) servePages(w http.ResponseWriter, r *http.Request) {
	switch a := c.attached.Load(); {
	case a != nil:
		a.pages.ServeHTTP(w, r)
	case r.URL.Path == "/":
		refuseStarting(w)
	default:
		http.NotFound(w, r)
	}
}

func refuseStarting(w http.ResponseWriter) {
	w.Header().Set("Retry-After", retryAfter)
	http.Error(w, "this server is still starting", http.StatusServiceUnavailable)
}

func (c *Control) serveHealth(w http.ResponseWriter, r *http.Request, ready bool) {
	a := c.attached.Load()
	if a == nil {
		c.serveStarting(w, ready)
		return
	}
	status, body, err := a.health.Answer(r.Context(), ready)
	if err != nil {
		c.log.Error("can't write the health", "error", err)
		http.Error(w, "internal error; see the log of this server", http.StatusInternalServerError)
		return
	}
	c.json(w, status, body)
}

func (c *Control) serveStarting(w http.ResponseWriter, ready bool) {
	var state any = map[string]string{"status": "starting"}
	if f := c.starting.Load(); f != nil && !ready {
		state = (*f)()
	}
	var body bytes.Buffer
	if err := respond.WriteJSON(&body, state); err != nil {
		c.log.Error("can't write the health", "error", err)
		body.Reset()
	}
	w.Header().Set("Retry-After", retryAfter)
	c.json(w, http.StatusServiceUnavailable, append(body.Bytes(), '\n'))
}

// json answers with a body of JSON.
func (*Control) json(w http.ResponseWriter, status int, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // fails if the client is gone
}
