package httpapi

import (
	"context"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/common/expfmt"
	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/health"
	"nar-herder/storage/index"
)

// metrics are those of the server.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	bytes    [routeCount]prometheus.Counter
	// known are the counters of the usual statuses, which saves a look-up by label.
	known     [routeCount][len(usualStatuses)]prometheus.Counter
	faults    prometheus.Counter
	corrupt   prometheus.Counter
	unreached prometheus.Counter // nars that could not be fetched from other instances
}

// usualStatuses have counters from the start, so that the first one shows as an increase.
var usualStatuses = [...]int{200, 206, 304, 400, 404, 405, 416, 500, 502, 503}

func newMetrics(s *Server) *metrics {
	m := &metrics{registry: prometheus.NewRegistry()}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
		m.registry.MustRegister(c)
		return c
	}
	m.requests = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "narherder_http_requests_total", Help: "Requests answered, by kind and status.",
	}, []string{"route", "status"})
	sent := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "narherder_http_response_body_bytes_total", Help: "Bytes of response bodies by their Content-Length, by kind.",
	}, []string{"route"})
	m.registry.MustRegister(m.requests, sent)
	for route, pattern := range patterns {
		m.bytes[route] = sent.WithLabelValues(pattern)
		for i, status := range usualStatuses {
			m.known[route][i] = m.requests.WithLabelValues(pattern, strconv.Itoa(status))
		}
	}
	m.faults = counter("narherder_faults_total", "Requests that failed because of a fault of this server.")
	m.corrupt = counter("narherder_damaged_nars_total", "Answers cut or refused because a stored nar does not have the hash of its narinfo.")
	m.unreached = counter("narherder_elsewhere_unreached_total", "Nars that could not be fetched from other instances for clients.")

	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("narherder_change_streams", "Instances that follow the stream of changes.", func() float64 { return float64(s.peers.Streams()) })
	gauge("narherder_decoders", "Nars being decompressed for clients, or in memory until their clients have read them.", func() float64 { return float64(s.checker.Options.Decoders.Count()) })
	gauge("narherder_decoder_memory_bytes", "Memory reserved for decompressing for clients.", func() float64 { return float64(s.checker.Options.Decoders.Memory()) })
	gauge("narherder_decoder_memory_limit_bytes", "Limit of the memory for decompressing, for clients and background work together.", func() float64 { return float64(s.checker.Options.Decoders.Budget().Total()) })
	gauge("narherder_decoder_background_memory_bytes", "Memory reserved for decompressing by mirroring, cached compressions and removal.", func() float64 { return float64(s.checker.Options.Decoders.Budget().Background()) })
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_decoder_restarts_total", Help: "Nars of slow clients that were decompressed again from the start, because other clients needed the memory meanwhile.",
	}, func() float64 { return float64(s.checker.Options.Decoders.Restarted()) }))
	gauge("narherder_answer_cache_bytes", "Memory of prepared answers.", func() float64 {
		_, size := s.answers.Usage()
		return float64(size)
	})
	gauge("narherder_answer_cache_entries", "Prepared answers in memory.", func() float64 {
		count, _ := s.answers.Usage()
		return float64(count)
	})
	s.engine.Register(m.registry)
	m.registry.MustRegister(
		&totalsCollector{s},
		s.health,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "narherder_build_info", Help: "1, with the version as label.",
	}, []string{"version"})
	build.WithLabelValues(s.options.Version).Set(1)
	m.registry.MustRegister(build)
	return m
}

// count counts an answer.
func (m *metrics) count(route route, ctx *fasthttp.RequestCtx) {
	status := ctx.Response.StatusCode()
	m.bytes[route].Add(float64(bodyLength(ctx)))
	for i, usual := range usualStatuses {
		if usual == status {
			m.known[route][i].Inc()
			return
		}
	}
	m.requests.WithLabelValues(patterns[route], strconv.Itoa(status)).Inc()
}

// bodyLength returns the length of the answer's body, or 0 if unknown.
func bodyLength(ctx *fasthttp.RequestCtx) int {
	switch {
	case ctx.IsHead():
		return 0
	case ctx.Response.IsBodyStream():
		return max(ctx.Response.Header.ContentLength(), 0) // Body would read the stream
	}
	return len(ctx.Response.Body())
}

// totals reads the totals of the index, in bounded time.
func (s *Server) totals() (index.Totals, error) {
	ctx, cancel := context.WithTimeout(s.live, health.Deadline)
	defer cancel()
	return s.items.Totals(ctx)
}

// totalsCollector reads the totals of the index at each scrape.
type totalsCollector struct{ s *Server }

var (
	itemsDesc      = prometheus.NewDesc("narherder_items", "Store items in the index.", nil, nil)
	storedNarsDesc = prometheus.NewDesc("narherder_stored_nars", "Nars in the storage, according to the index.", nil, nil)
	storedSizeDesc = prometheus.NewDesc("narherder_stored_bytes", "Length of the nars in the storage, according to the index.", nil, nil)
)

func (c *totalsCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- itemsDesc
	descs <- storedNarsDesc
	descs <- storedSizeDesc
}

func (c *totalsCollector) Collect(values chan<- prometheus.Metric) {
	totals, err := c.s.totals()
	if err != nil {
		c.s.log.Error("can't read the totals for the metrics", "error", err)
		return
	}
	values <- prometheus.MustNewConstMetric(itemsDesc, prometheus.GaugeValue, float64(totals.Items))
	values <- prometheus.MustNewConstMetric(storedNarsDesc, prometheus.GaugeValue, float64(totals.StoredNars))
	values <- prometheus.MustNewConstMetric(storedSizeDesc, prometheus.GaugeValue, float64(totals.StoredSize))
}

func (s *Server) serveMetrics(ctx *fasthttp.RequestCtx) {
	families, err := s.metrics.registry.Gather()
	if err != nil {
		s.fault(ctx, "gather the metrics", err)
		return
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	encoder := expfmt.NewEncoder(ctx.Response.BodyWriter(), format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			s.fault(ctx, "write the metrics", err)
			return
		}
	}
	ctx.Response.Header.SetContentType(string(format))
}
