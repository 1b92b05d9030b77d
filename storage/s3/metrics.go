package s3

import (
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// requestKinds are the labels of requests. The SDK's operations are told by their method and
// query.
var requestKinds = []string{"get", "head", "list", "put", "part", "multipart", "delete"}

// outcomes of requests: an error of the request or missing permission is refused, a server that
// wants fewer requests throttles, and a request without an answer is unanswered.
var outcomes = []string{"ok", "missing", "refused", "throttled", "failed", "unanswered"}

// metrics count the requests of a bucket, each attempt.
type metrics struct {
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "narherder_s3_requests_total", Help: "Requests to the object store, each attempt, by operation and outcome: ok, missing, refused, throttled, failed (a status of 500 or more), unanswered.",
		}, []string{"operation", "outcome"}),
		prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "narherder_s3_request_duration_seconds", Help: "Time from a request to the object store to the head of its answer, by operation.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30},
		}, []string{"operation"}),
	}
	for _, operation := range requestKinds {
		m.duration.WithLabelValues(operation)
		for _, outcome := range outcomes {
			m.requests.WithLabelValues(operation, outcome)
		}
	}
	return m
}

// measured sends a request and counts it.
func (m *metrics) measured(send func(*http.Request) (*http.Response, error), request *http.Request) (*http.Response, error) {
	begun := time.Now()
	response, err := send(request)
	operation, status := operationOf(request), 0
	if err == nil {
		status = response.StatusCode
		m.duration.WithLabelValues(operation).Observe(time.Since(begun).Seconds())
	}
	m.requests.WithLabelValues(operation, outcomeOf(status)).Inc()
	return response, err
}

func operationOf(request *http.Request) string {
	query := request.URL.Query()
	switch request.Method {
	case http.MethodGet:
		if query.Has("list-type") || query.Has("uploads") {
			return "list"
		}
		return "get"
	case http.MethodHead:
		return "head"
	case http.MethodPut:
		if query.Has("partNumber") {
			return "part"
		}
		return "put"
	case http.MethodDelete:
		return "delete"
	}
	if query.Has("delete") {
		return "delete"
	}
	return "multipart"
}

// outcomeOf returns the outcome of a request by its status, which is 0 without an answer.
func outcomeOf(status int) string {
	switch {
	case status == 0:
		return "unanswered"
	case status == http.StatusNotFound:
		return "missing"
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable: // SlowDown
		return "throttled"
	case status >= 500:
		return "failed"
	case status == http.StatusPreconditionFailed, status == http.StatusNotModified, status == http.StatusRequestedRangeNotSatisfiable, status < 300:
		return "ok" // as requested
	}
	return "refused"
}

// Describe implements [prometheus.Collector].
func (b *Bucket) Describe(descs chan<- *prometheus.Desc) {
	b.http.metrics.requests.Describe(descs)
	b.http.metrics.duration.Describe(descs)
}

// Collect implements [prometheus.Collector].
func (b *Bucket) Collect(values chan<- prometheus.Metric) {
	b.http.metrics.requests.Collect(values)
	b.http.metrics.duration.Collect(values)
}
