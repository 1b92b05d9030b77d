// Package respond writes short answers and errors.
package respond

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"nar-herder/internal/logonce"
)

const (
	// NoStore is a Cache-Control that keeps an answer out of all caches.
	NoStore = "no-store"
	// Revalidate is a Cache-Control that makes caches revalidate an answer before each use.
	Revalidate = "no-cache"
)

// Text answers with a short text.
func Text(ctx *fasthttp.RequestCtx, contentType, body string) {
	ctx.Response.Header.SetContentType(contentType)
	ctx.Response.SetBodyString(body)
}

// Fail answers with an error. The message describes the request, not this machine. Caches
// must not keep failures of the server.
func Fail(ctx *fasthttp.RequestCtx, status int, message string) {
	ctx.Response.SetStatusCode(status)
	if status >= fasthttp.StatusInternalServerError {
		ctx.Response.Header.Set(fasthttp.HeaderCacheControl, NoStore)
	}
	Text(ctx, "text/plain; charset=utf-8", message+"\n")
}

// NotFound answers that something certainly does not exist here.
func NotFound(ctx *fasthttp.RequestCtx, message string) {
	Fail(ctx, fasthttp.StatusNotFound, message)
}

// Faults counts requests that can't be answered, and logs why.
type Faults struct {
	Log   *slog.Logger
	Count prometheus.Counter

	logged logonce.Filter
}

// IsDue reports whether an error should be logged: each once an hour, since many requests may fail
// for the same reason.
func (f *Faults) IsDue(tried string, err error) bool {
	return f.logged.IsDue(tried+": "+err.Error(), time.Now())
}

// Answer answers 500 for a failure of this server. Clients then retry soon, or use another
// server, but they would cache a 404 for long.
func (f *Faults) Answer(ctx *fasthttp.RequestCtx, tried string, err error) {
	f.Note(ctx, tried, err)
	Fail(ctx, fasthttp.StatusInternalServerError, "internal error; see the log of this server")
}

// Note logs and counts a request that has been answered.
func (f *Faults) Note(ctx *fasthttp.RequestCtx, tried string, err error) {
	f.Count.Inc()
	if f.IsDue(tried, err) {
		f.Log.Error("can't answer a request", "tried", tried, "path", string(ctx.RequestURI()), "error", err)
	}
}

// WriteJSON writes a value without a newline, and without escaping < and >.
func WriteJSON(to *bytes.Buffer, value any) error {
	encoder := json.NewEncoder(to)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	to.Truncate(to.Len() - 1) // the newline
	return nil
}
