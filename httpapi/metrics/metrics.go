// Package metrics counts answers by their kind, and faults.
package metrics

import (
	"context"
	"log/slog"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/health"
	"nar-herder/storage/index"
)

// Answers counts answers. Its counters are registered in the Registry.
type Answers struct {
	Registry *prometheus.Registry
	// Faults are requests that failed because of this server, Corrupt answers for nars that are
	// damaged here, and Unreached nars that could not be fetched from other instances.
	Faults, Corrupt, Unreached prometheus.Counter

	patterns []string
	requests *prometheus.CounterVec
	bytes    []prometheus.Counter
	// usual are the counters of the usual statuses, which saves a look-up by label.
	usual [][len(usualStatuses)]prometheus.Counter
}

// usualStatuses have counters from the start, so that the first one shows as an increase.
var usualStatuses = [...]int{200, 206, 304, 400, 404, 405, 416, 500, 502, 503}

// New makes the counters. Routes are kinds of requests, by the numbers of their patterns.
func New(patterns []string) *Answers {
	a := &Answers{
		Registry: prometheus.NewRegistry(), patterns: patterns,
		bytes: make([]prometheus.Counter, len(patterns)), usual: make([][len(usualStatuses)]prometheus.Counter, len(patterns)),
	}
	a.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "narherder_http_requests_total", Help: "Requests answered, by kind and status.",
	}, []string{"route", "status"})
	sent := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "narherder_http_response_body_bytes_total", Help: "Bytes of response bodies by their Content-Length, by kind.",
	}, []string{"route"})
	a.Registry.MustRegister(a.requests, sent)
	for route, pattern := range patterns {
		a.bytes[route] = sent.WithLabelValues(pattern)
		for i, status := range usualStatuses {
			a.usual[route][i] = a.requests.WithLabelValues(pattern, strconv.Itoa(status))
		}
	}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		a.Registry.MustRegister(c)
		return c
	}
	a.Faults = counter("narherder_faults_total", "Requests that failed because of a fault of this server.")
	a.Corrupt = counter("narherder_damaged_nars_total", "Answers cut or refused because a stored nar does not have the hash of its narinfo.")
	a.Unreached = counter("narherder_elsewhere_unreached_total", "Nars that could not be fetched from other instances for clients.")
	return a
}

// Count counts an answer.
func (a *Answers) Count(route int, ctx *fasthttp.RequestCtx) {
	status := ctx.Response.StatusCode()
	a.bytes[route].Add(float64(BodyLength(ctx)))
	for i, usual := range usualStatuses {
		if usual == status {
			a.usual[route][i].Inc()
			return
		}
	}
	a.requests.WithLabelValues(a.patterns[route], strconv.Itoa(status)).Inc()
}

// BodyLength returns the length of the answer's body, or 0 if unknown.
func BodyLength(ctx *fasthttp.RequestCtx) int {
	switch {
	case ctx.IsHead():
		return 0
	case ctx.Response.IsBodyStream():
		return max(ctx.Response.Header.ContentLength(), 0) // Body would read the stream
	}
	return len(ctx.Response.Body())
}

// Totals reads the totals of the index at each scrape, in bounded time.
type Totals struct {
	Read func(context.Context) (index.Totals, error)
	Live context.Context
	Log  *slog.Logger
}

// Get returns the totals.
func (t *Totals) Get() (index.Totals, error) {
	ctx, cancel := context.WithTimeout(t.Live, health.Deadline)
	defer cancel()
	return t.Read(ctx)
}

var (
	itemsDesc      = prometheus.NewDesc("narherder_items", "Store items in the index.", nil, nil)
	storedNarsDesc = prometheus.NewDesc("narherder_stored_nars", "Nars in the storage, according to the index.", nil, nil)
	storedSizeDesc = prometheus.NewDesc("narherder_stored_bytes", "Length of the nars in the storage, according to the index.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (t *Totals) Describe(descs chan<- *prometheus.Desc) {
	descs <- itemsDesc
	descs <- storedNarsDesc
	descs <- storedSizeDesc
}

// Collect implements [prometheus.Collector].
func (t *Totals) Collect(values chan<- prometheus.Metric) {
	totals, err := t.Get()
	if err != nil {
		t.Log.Error("can't read the totals for the metrics", "error", err)
		return
	}
	values <- prometheus.MustNewConstMetric(itemsDesc, prometheus.GaugeValue, float64(totals.Items))
	values <- prometheus.MustNewConstMetric(storedNarsDesc, prometheus.GaugeValue, float64(totals.StoredNars))
	values <- prometheus.MustNewConstMetric(storedSizeDesc, prometheus.GaugeValue, float64(totals.StoredSize))
}
