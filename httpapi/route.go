package httpapi

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

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
	routeCount
)

// patterns are the labels of the routes: never a hash, or the metrics would
// grow with the store.
var patterns = [routeCount]string{
	"other", "/HASH.narinfo", "/HASH.narinfo/info", "/stored-nars/", "/nar/", "/file/",
	peer.DumpPath, peer.IndexPath, peer.ChangesPath, peer.StreamPath, "/nix-cache-info",
	"/signing-key.pub", "/metrics", "/health", "/",
}

const (
	narinfoSuffix = ".narinfo"
	// narinfoPathLen is that of "/HASH.narinfo".
	narinfoPathLen = 1 + narinfo.PathHashLen + len(narinfoSuffix)
)

// storedSegment is the first part of the path of peer.StoredPath.
var storedSegment = strings.Trim(peer.StoredPath, "/")

func (s *Server) handle(ctx *fasthttp.RequestCtx) {
	defer func() {
		if fault := recover(); fault != nil {
			s.log.Error("a fault of the program while answering a request; please report it",
				"path", string(ctx.RequestURI()), "fault", fault, "stack", string(debug.Stack()))
			ctx.Response.Reset()
			s.fail(ctx, fasthttp.StatusInternalServerError, "internal error")
			s.metrics.faults.Inc()
			s.metrics.count(routeOther, ctx)
		}
	}()
	route := s.dispatch(ctx)
	if !ctx.Request.Header.IsHTTP11() {
		SendUntilClose(ctx)
	}
	s.answered.Add(1)
	if s.stopping.Load() && !ctx.Hijacked() {
		CloseAfter(ctx)
	}
	s.metrics.count(route, ctx)
	if s.log.Enabled(ctx, slog.LevelDebug) {
		LeaveLoop(ctx)
		s.log.LogAttrs(ctx, slog.LevelDebug, "request",
			slog.String("method", string(ctx.Method())),
			slog.String("path", string(ctx.RequestURI())),
			slog.Int("status", ctx.Response.StatusCode()),
			slog.Int("bytes", bodyLength(ctx)),
			slog.String("client", s.options.TrustedProxies.ClientName(ctx)))
	}
}

// dispatch answers the request and says what it was.
func (s *Server) dispatch(ctx *fasthttp.RequestCtx) route {
	if status, message := Violation(ctx); status != 0 {
		s.fail(ctx, status, message)
		CloseAfter(ctx)
		return routeOther
	}
	path := ctx.URI().PathOriginal()
	if !ctx.IsGet() && !ctx.IsHead() {
		ctx.Response.Header.Set("Allow", "GET, HEAD")
		s.fail(ctx, fasthttp.StatusMethodNotAllowed, "only GET and HEAD are answered here")
		return routeOther
	}
	if HasBody(ctx) {
		s.fail(ctx, fasthttp.StatusRequestEntityTooLarge, "requests have no body here")
		return routeOther
	}
	// What a farm's server is asked nearly all of the time.
	if len(path) == narinfoPathLen && string(path[len(path)-len(narinfoSuffix):]) == narinfoSuffix {
		if hash, err := narinfo.ParsePathHash(path[1 : 1+narinfo.PathHashLen]); err == nil {
			s.serveNarinfo(ctx, hash)
			return routeNarinfo
		}
	}
	if s.serveKnown(ctx, path) {
		return routeNar
	}
	decoded, err := decodePath(path)
	if err != nil {
		s.fail(ctx, fasthttp.StatusBadRequest, err.Error())
		return routeOther
	}
	segments := strings.Split(decoded[1:], "/")
	switch first := segments[0]; {
	case len(segments) == 1 && first == "":
		LeaveLoop(ctx)
		return s.serveHome(ctx)
	case len(segments) == 1 && first == "nix-cache-info":
		s.text(ctx, "text/plain; charset=utf-8", narinfo.CacheInfo)
		return routeCacheInfo
	case len(segments) == 1 && first == "metrics" && !s.options.HideMetrics:
		LeaveLoop(ctx)
		s.serveMetrics(ctx)
		return routeMetrics
	case len(segments) == 1 && first == "signing-key.pub" && s.options.SigningKey != nil:
		s.text(ctx, "text/plain; charset=utf-8", string(s.options.SigningKey))
		return routeSigningKey
	case decoded == healthPath && !s.options.HideMetrics, decoded == readyPath, decoded == livePath:
		LeaveLoop(ctx)
		s.serveHealth(ctx, decoded)
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
		LeaveLoop(ctx)
		s.serveChanges(ctx)
		return routeChanges
	case decoded == peer.StreamPath && s.options.Changes != nil:
		LeaveLoop(ctx)
		s.serveStream(ctx)
		return routeStream
	case len(segments) == 1 && first == peer.DumpPath[1:]:
		LeaveLoop(ctx)
		s.serveDump(ctx, routeDump)
		return routeDump
	case len(segments) == 1 && first == peer.IndexPath[1:]:
		LeaveLoop(ctx)
		s.serveDump(ctx, routeIndexDump)
		return routeIndexDump
	case first == storedSegment && len(segments) == 2:
		LeaveLoop(ctx)
		s.serveStored(ctx, segments[1])
		return routeStored
	case strings.HasSuffix(first, narinfoSuffix):
		hash, err := narinfo.ParsePathHash(strings.TrimSuffix(first, narinfoSuffix))
		if err == nil && len(segments) == 1 {
			s.serveNarinfo(ctx, hash)
			return routeNarinfo
		}
		if err == nil && len(segments) == 2 && segments[1] == "info" {
			LeaveLoop(ctx)
			s.serveInfo(ctx, hash)
			return routeInfo
		}
	}
	s.notFound(ctx, "there is nothing of that name")
	return routeOther
}

// errBadPath is what clients are told.
var errBadPath = errors.New("the path of the URL is malformed")

// decodePath undoes the percent-encoding of a request's path. The result
// begins with a slash, and has no empty part but perhaps the last, no "." or
// "..", and no NUL: those have no meaning here, but might to what is behind.
func decodePath(path []byte) (string, error) {
	if len(path) == 0 || path[0] != '/' {
		return "", errBadPath
	}
	decoded := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c := path[i]
		if c == '%' {
			if i+2 >= len(path) {
				return "", errBadPath
			}
			high, low := unhex(path[i+1]), unhex(path[i+2])
			if high < 0 || low < 0 {
				return "", errBadPath
			}
			c = byte(high<<4 | low)
			i += 2
			if c == '/' {
				return "", errBadPath
			}
		}
		if c < ' ' || c == 0x7f {
			return "", errBadPath
		}
		decoded = append(decoded, c)
	}
	rest := string(decoded[1:])
	for rest != "" {
		var segment string
		segment, rest, _ = strings.Cut(rest, "/")
		if segment == "" || segment == "." || segment == ".." {
			return "", errBadPath
		}
	}
	return string(decoded), nil
}

func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// text answers with a short text.
func (s *Server) text(ctx *fasthttp.RequestCtx, contentType, body string) {
	ctx.Response.Header.SetContentType(contentType)
	ctx.Response.SetBodyString(body)
}

// fail answers with an error, which says what is wrong with the request and
// nothing about this machine. Caches must not keep a failure of the server.
func (s *Server) fail(ctx *fasthttp.RequestCtx, status int, message string) {
	ctx.Response.SetStatusCode(status)
	if status >= fasthttp.StatusInternalServerError {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, noStore)
	}
	s.text(ctx, "text/plain; charset=utf-8", message+"\n")
}

// notFound says that something is certainly not here.
func (s *Server) notFound(ctx *fasthttp.RequestCtx, message string) {
	s.fail(ctx, fasthttp.StatusNotFound, message)
}

// fault answers when something here is broken, or not known: clients try again
// soon, or elsewhere, where they would believe "not found" for long.
func (s *Server) fault(ctx *fasthttp.RequestCtx, tried string, err error) {
	s.metrics.faults.Inc()
	s.log.Error("can't answer a request", "tried", tried, "path", string(ctx.RequestURI()), "error", err)
	s.fail(ctx, fasthttp.StatusInternalServerError, "this server has a fault and can't tell; its log says more")
}

// handleBadRequest answers what could not be read as a request. The connection
// is closed after it.
func (s *Server) handleBadRequest(ctx *fasthttp.RequestCtx, err error) {
	AnswerBadRequest(ctx, err)
	s.metrics.count(routeOther, ctx)
}

// maxAge is the Cache-Control header for a time to live.
func maxAge(ttl *time.Duration) string {
	if ttl == nil {
		return ""
	}
	return fmt.Sprintf("max-age=%d", int64(ttl.Seconds()))
}
