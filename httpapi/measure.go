package httpapi

import (
	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/measured"
	"nar-herder/httpapi/metrics"
)

// measure measures the answer.
func (s *Server) measure(ctx *fasthttp.RequestCtx, r route) {
	hit := r == routePrepared
	if hit {
		r = routeNarinfo
	}
	var request *measured.Request
	if s.options.AccessLog != nil {
		request = engine.Describe(ctx, s.options.TrustedProxies)
	}
	engine.Measure(ctx, s, int(r), hit, request)
}

// Finished implements [measured.Sink].
func (s *Server) Finished(answers []measured.Answer) {
	s.metrics.Finished(answers)
	if s.options.AccessLog != nil {
		s.options.AccessLog.Finished(answers)
	}
}

// RouteName returns the name of an answer's route in metrics and logs.
func RouteName(number int) string { return patterns[number] }

// Snapshot returns sums of all answers since the start, for the history of a day.
func (s *Server) Snapshot() metrics.Snapshot {
	return s.metrics.Snapshot(
		func(number int) bool { return route(number) == routeMetrics || route(number) == routeHealth },
		func(number int) bool { return route(number) == routeNarinfo || route(number) == routeNar })
}
