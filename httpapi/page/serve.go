package page

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/respond"
	"nar-herder/internal/logonce"
)

const (
	// deadline bounds how long a page may take, with the wait for its turn.
	deadline = 5 * time.Second
	// retryAfter is the Retry-After header of a page that takes longer, in seconds.
	retryAfter = "5"
	busy       = "the server is busy: try again in a moment"

	// A turn rests for restEach for each request that was answered while its page was made, up to
	// mostRest: narinfos come first, however many robots read pages. With a hundred thousand requests
	// a second, each turn uses a thirtieth of a processor at most; with a thousand, three quarters.
	restEach = 300 * time.Microsecond
	mostRest = time.Second
)

// policy allows nothing but assets of this site.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"

// fields are the header fields of all pages.
var fields = [][2]string{
	{"Content-Security-Policy", policy},
	{"X-Content-Type-Options", "nosniff"},
	{"Referrer-Policy", "no-referrer"},
	{"Cross-Origin-Resource-Policy", "same-origin"},
}

const (
	htmlType = "text/html; charset=utf-8"
	// notHTML answers clients that are not browsers.
	notHTML = "this is a substitute server: ask for /HASH.narinfo"
	// onlyHTML answers them at the other pages.
	onlyHTML = "this page is for browsers: send 'Accept: text/html'"
)

// Has reports whether a path belongs to the site, by its segments. "/" always does.
func (s *Site) Has(segments []string) bool {
	return len(segments) == 1 && segments[0] == "" || s.find(segments) != nil || s.assetOf(segments) != nil
}

// IsFor reports whether the site answers a request for a path that nobody has: with a page, for
// browsers.
func (s *Site) IsFor(ctx *fasthttp.RequestCtx) bool {
	return len(s.routes) > 0 && WantsHTML(ctx.Request.Header.PeekAll("Accept")...)
}

// missing is the page of paths that the site doesn't have.
var missing = &Route{Name: "missing", Make: func(context.Context, *Request) (*Page, error) { return nil, ErrNotFound }}

// ShownFault is a fault of the server about which a page was the answer.
type ShownFault struct{ error }

// Serve answers a request for a path that the site has, or that nobody has. answered returns how many
// requests the server has answered. An error is a fault of the server, and leaves the answer to the
// caller, unless it is a [ShownFault].
func (s *Site) Serve(live context.Context, ctx *fasthttp.RequestCtx, segments []string, answered func() int64) error {
	header := &ctx.Response.Header
	for _, field := range fields {
		header.Set(field[0], field[1])
	}
	if a := s.assetOf(segments); a != nil {
		header.Set("ETag", a.tag)
		header.Set("Cache-Control", a.cacheControl(string(ctx.URI().QueryString())))
		if a.matches(string(ctx.Request.Header.Peek("If-None-Match"))) {
			ctx.Response.SetStatusCode(fasthttp.StatusNotModified)
			return nil
		}
		header.SetContentType(a.kind)
		ctx.Response.SetBodyRaw(a.body)
		return nil
	}
	header.Set("Vary", "Accept")
	r := cmp.Or(s.find(segments), missing)
	if !s.IsFor(ctx) {
		respond.NotFound(ctx, refusal(segments))
		return nil
	}
	query, err := url.ParseQuery(string(ctx.URI().QueryString()))
	if err != nil {
		respond.Fail(ctx, fasthttp.StatusBadRequest, "the query of the URL is malformed")
		return nil
	}
	host := string(ctx.Host())
	for _, name := range forwarded {
		if len(ctx.Request.Header.Peek(name)) > 0 {
			host = ""
		}
	}
	body, status, err := s.answer(live, r, segments, query, host, false, answered)
	if errors.Is(err, context.DeadlineExceeded) {
		header.Set("Retry-After", retryAfter)
		respond.Fail(ctx, fasthttp.StatusServiceUnavailable, busy)
		return nil
	}
	if err != nil && body == nil {
		return err
	}
	header.Set("Cache-Control", respond.Revalidate)
	ctx.Response.SetStatusCode(status)
	if status == fasthttp.StatusFound {
		header.Set("Location", string(body)) // relative, as the server may be below a path of a proxy
		return nil
	}
	header.SetContentType(htmlType)
	ctx.Response.SetBody(body)
	if err != nil {
		header.Set("Cache-Control", respond.NoStore)
		return ShownFault{err}
	}
	return nil
}

// Private returns a handler that serves the pages to the administrator.
func (s *Site) Private(log *slog.Logger) http.Handler {
	var logged logonce.Filter
	return http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		for _, field := range fields {
			w.Header().Set(field[0], field[1])
		}
		segments := strings.Split(strings.TrimPrefix(request.URL.Path, "/"), "/")
		if a := s.assetOf(segments); a != nil {
			w.Header().Set("ETag", a.tag)
			w.Header().Set("Cache-Control", a.cacheControl(request.URL.RawQuery))
			if a.matches(request.Header.Get("If-None-Match")) {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			w.Header().Set("Content-Type", a.kind)
			_, _ = w.Write(a.body) // fails if the client is gone
			return
		}
		w.Header().Set("Vary", "Accept")
		var accept [][]byte
		for _, value := range request.Header.Values("Accept") {
			accept = append(accept, []byte(value))
		}
		r := cmp.Or(s.find(segments), missing)
		if len(s.routes) == 0 || !WantsHTML(accept...) {
			http.Error(w, refusal(segments), http.StatusNotFound)
			return
		}
		query, err := url.ParseQuery(request.URL.RawQuery)
		if err != nil {
			http.Error(w, "the query of the URL is malformed", http.StatusBadRequest)
			return
		}
		body, status, err := s.answer(request.Context(), r, segments, query, "", true, nil)
		if err != nil {
			if logged.IsDue(err.Error(), time.Now()) {
				log.Error("can't make a page", "path", request.URL.Path, "error", err)
			}
		}
		if body == nil {
			http.Error(w, "internal error; see the log of this server", http.StatusInternalServerError)
			return
		}
		if status == http.StatusFound {
			w.Header().Set("Location", string(body))
			w.WriteHeader(status)
			return
		}
		w.Header().Set("Content-Type", htmlType)
		w.WriteHeader(status)
		_, _ = w.Write(body) // fails if the client is gone
	})
}

// answer makes a page. answered is for public pages.
func (s *Site) answer(ctx context.Context, r *Route, segments []string, query url.Values, host string, private bool, answered func() int64) (body []byte, status int, err error) {
	ctx, cancel := context.WithTimeout(ctx, deadline)
	defer cancel()
	if !private {
		select {
		case s.turns <- struct{}{}:
			defer s.endTurn(answered(), answered)
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
	request := &Request{Query: query, Private: private, ShowsMetrics: private || !s.options.HideMetrics, depth: len(segments) - 1}
	if r.TakesRest {
		request.Rest = strings.Join(segments[1:], "/")
	}
	request.URL, request.IsURLGuessed = s.url(host)
	if body, status, err = s.render(ctx, r, request); err != nil {
		err = fmt.Errorf("make the page /%s: %w", r.Name, err)
	}
	return body, status, err
}

// endTurn ends a turn after a rest. before is the number of answered requests when it began.
func (s *Site) endTurn(before int64, answered func() int64) {
	if rest := time.Duration(answered()-before) * restEach; rest > 0 {
		time.AfterFunc(min(rest, mostRest), func() { <-s.turns })
		return
	}
	<-s.turns
}

func refusal(segments []string) string {
	if segments[0] == "" {
		return notHTML
	}
	return onlyHTML
}
