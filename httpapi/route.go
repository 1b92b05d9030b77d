package httpapi

import (
	"errors"
	"runtime/debug"
	"strings"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/headers"
	"nar-herder/httpapi/health"
	"nar-herder/httpapi/metrics"
	"nar-herder/httpapi/page"
	"nar-herder/httpapi/respond"
	"nar-herder/narinfo"
	"nar-herder/peer"
)

// route is a kind of request, and its name in the metrics.
type route int

const (
	routeOther route = iota
	routeNarinfo
	routeInfo
	routeStored
	routeNar
	routeFile
	routeDump
	routeIndexDump
	routeChanges
	routeStream
	routeCacheInfo
	routeSigningKey
	routeMetrics
	routeHealth
	routeHome
	routeStatus
	routeSearch
	routeItem
	routeAsset
	routeCount

	// routePrepared is routeNarinfo for an answer from memory.
	routePrepared
)

// patterns are the labels of the routes in the metrics.
var patterns = [routeCount]string{
	"other", "/HASH.narinfo", "/HASH.narinfo/info", "/stored-nars/", "/nar/", "/file/",
	peer.DumpPath, peer.IndexPath, peer.ChangesPath, peer.StreamPath, "/nix-cache-info",
	"/signing-key.pub", "/metrics", "/health", "/", "/status", "/search", "/item/HASH", "/page/",
}

var metricRoutes = metrics.Routes{
	Patterns: patterns[:], Cached: int(routeNarinfo),
	Quiet: []int{int(routeMetrics), int(routeHealth)}, Timed: []int{int(routeNarinfo), int(routeNar)},
}

const (
	narinfoSuffix = ".narinfo"
	// narinfoPathLen is the length of "/HASH.narinfo".
	narinfoPathLen = 1 + narinfo.PathHashLen + len(narinfoSuffix)
)

// storedSegment is the first segment of peer.StoredPath.
var storedSegment = strings.Trim(peer.StoredPath, "/")

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if fault := recover(); fault != nil {
			s.log.Error("panic while answering a request; please report it",
				"path", string(ctx.RequestURI()), "error", fault, "stack", string(debug.Stack()))
			ctx.Response.Reset()
			respond.Fail(ctx, fasthttp.StatusInternalServerError, "internal error")
			s.metrics.Faults.Inc()
			s.measure(ctx, routeOther)
		}
	}()
	route := s.dispatch(ctx)
	if !ctx.Request.Header.IsHTTP11() {
		engine.SendUntilClose(ctx)
	}
	s.answered.Add(1)
	if s.stopping.Load() && !ctx.Hijacked() {
		engine.CloseAfter(ctx)
	}
	s.measure(ctx, route)
}

// dispatch answers the request and returns its route.
func (s *Server) dispatch(ctx *fasthttp.RequestCtx) route {
	if status, message := engine.Violation(ctx); status != 0 {
		respond.Fail(ctx, status, message)
		engine.CloseAfter(ctx)
		return routeOther
	}
	path := ctx.URI().PathOriginal()
	if !ctx.IsGet() && !ctx.IsHead() {
		ctx.Response.Header.Set("Allow", "GET, HEAD")
		respond.Fail(ctx, fasthttp.StatusMethodNotAllowed, "only GET and HEAD are answered here")
		return routeOther
	}
	if engine.HasBody(ctx) {
		respond.Fail(ctx, fasthttp.StatusRequestEntityTooLarge, "requests have no body here")
		return routeOther
	}
	// Fast path: nearly all requests are for narinfos.
	if len(path) == narinfoPathLen && string(path[len(path)-len(narinfoSuffix):]) == narinfoSuffix {
		if hash, err := narinfo.ParsePathHash(path[1 : 1+narinfo.PathHashLen]); err == nil {
			return s.serveNarinfo(ctx, hash)
		}
	}
	if s.serveKnown(ctx, path) {
		return routeNar
	}
	decoded, err := headers.DecodePath(path)
	if err != nil {
		respond.Fail(ctx, fasthttp.StatusBadRequest, err.Error())
		return routeOther
	}
	segments := strings.Split(decoded[1:], "/")
	switch first := segments[0]; {
	case s.options.Pages.Has(segments):
		engine.LeaveLoop(ctx)
		return s.servePage(ctx, segments)
	case len(segments) == 1 && first == "nix-cache-info":
		respond.Text(ctx, "text/plain; charset=utf-8", narinfo.CacheInfo)
		return routeCacheInfo
	case len(segments) == 1 && first == "metrics" && !s.options.HideMetrics:
		engine.LeaveLoop(ctx)
		if err := metrics.Serve(ctx, s.metrics.Registry); err != nil {
			s.fault(ctx, "gather and write the metrics", err)
		}
		return routeMetrics
	case len(segments) == 1 && s.options.SigningKeys.Text(first) != "":
		respond.Text(ctx, "text/plain; charset=utf-8", s.options.SigningKeys.Text(first))
		return routeSigningKey
	case decoded == health.Path && !s.options.HideMetrics, decoded == health.ReadyPath, decoded == health.LivePath:
		engine.LeaveLoop(ctx)
		if err := s.health.Serve(s.live, ctx, decoded); err != nil {
			s.fault(ctx, "write the health", err)
		}
		return routeHealth
	case first == "nar" && (len(segments) == 2 || len(segments) == 3):
		s.serveNar(ctx, decoded[1:], segments[len(segments)-1])
		s.setMissingCacheControl(ctx)
		return routeNar
	case first == "file" && len(segments) == 4:
		s.serveFile(ctx, segments[1], segments[2], segments[3])
		s.setMissingCacheControl(ctx)
		return routeFile
	case decoded == peer.ChangesPath && s.options.Changes != nil:
		engine.LeaveLoop(ctx)
		s.peers.ServeChanges(ctx)
		return routeChanges
	case decoded == peer.StreamPath && s.options.Changes != nil:
		engine.LeaveLoop(ctx)
		s.peers.ServeStream(ctx)
		return routeStream
	case len(segments) == 1 && first == peer.DumpPath[1:]:
		engine.LeaveLoop(ctx)
		s.peers.ServeDump(ctx, false)
		return routeDump
	case len(segments) == 1 && first == peer.IndexPath[1:]:
		engine.LeaveLoop(ctx)
		s.peers.ServeDump(ctx, true)
		return routeIndexDump
	case first == storedSegment && len(segments) == 2:
		engine.LeaveLoop(ctx)
		s.peers.ServeStored(ctx, segments[1])
		return routeStored
	case strings.HasSuffix(first, narinfoSuffix):
		hash, err := narinfo.ParsePathHash(strings.TrimSuffix(first, narinfoSuffix))
		if err == nil && len(segments) == 1 {
			return s.serveNarinfo(ctx, hash)
		}
		if err == nil && len(segments) == 2 && segments[1] == "info" {
			engine.LeaveLoop(ctx)
			if !s.peers.ServeInfo(ctx, hash) {
				respond.NotFound(ctx, noNarinfo)
				s.setMissingCacheControl(ctx)
			}
			return routeInfo
		}
	}
	if s.options.Pages.IsFor(ctx) {
		engine.LeaveLoop(ctx)
		s.servePage(ctx, segments)
		return routeOther
	}
	respond.NotFound(ctx, "there is nothing of that name")
	return routeOther
}

// pageRoutes are the routes of the pages for browsers, by the first segment of their paths.
var pageRoutes = map[string]route{"": routeHome, "status": routeStatus, "search": routeSearch, "item": routeItem, "page": routeAsset}

// servePage answers with a page for browsers, or a file that pages use.
func (s *Server) servePage(ctx *fasthttp.RequestCtx, segments []string) route {
	err := s.options.Pages.Serve(s.live, ctx, segments, s.Answered)
	var shown page.ShownFault
	if errors.As(err, &shown) {
		s.faults.Note(ctx, "answer with a page", err)
	} else if err != nil {
		s.fault(ctx, "answer with a page", err)
	}
	return pageRoutes[segments[0]]
}

// fault is [respond.Faults.Answer], unless the upstreams are the cause.
func (s *Server) fault(ctx *fasthttp.RequestCtx, tried string, err error) {
	if !s.upstreamFailed(ctx, err) {
		s.faults.Answer(ctx, tried, err)
	}
}

// handleBadRequest answers a malformed request, and closes the connection after it.
func (s *Server) handleBadRequest(ctx *fasthttp.RequestCtx, err error) {
	engine.AnswerBadRequest(ctx, err)
	s.measure(ctx, routeOther)
}
