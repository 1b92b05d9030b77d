package health

import (
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/clients"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/engine/admission"
)

// TestStartingPatience: requests wait for a server that does not start.
func TestStartingPatience(t *testing.T) {
	t.Parallel()
	for _, hideHealth := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			starting := NewStarting(hideHealth, admission.Limits{}, clients.Proxies{}, slog.New(slog.DiscardHandler))
			ask := func(path string, status int, most time.Duration) {
				t.Helper()
				var ctx fasthttp.RequestCtx
				ctx.Init(&fasthttp.Request{}, nil, nil)
				ctx.Request.SetRequestURI(path)
				begun := time.Now()
				starting.Engine.Server.Handler(&ctx)
				if took := time.Since(begun); ctx.Response.StatusCode() != status || took != most {
					t.Errorf("%s: %d after %s, want %d after %s", path, ctx.Response.StatusCode(), took, status, most)
				}
			}
			ask("/health/live", 200, 0)
			ask("/health/ready", 503, 0)
			if !hideHealth {
				ask("/health", 503, 0)
			}
			ask("/nar/x", 503, startPatience)
			ask("/nar/x", 503, 0) // as the next of a burst
			ask("/health", 503, 0)
			starting.SetState(nil)
			if hideHealth {
				ask("/health", 503, startPatience)
			}
			ask("/health/live", 200, 0)
			time.AfterFunc(time.Second, func() {
				starting.AnswerBy(func(ctx *fasthttp.RequestCtx) { ctx.SetStatusCode(204) }, engine.AnswerBadRequest)
			})
			if !hideHealth {
				ask("/nar/x", 204, time.Second)
			}
		})
	}
}
