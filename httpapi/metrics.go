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

// metrics counts what the server does.
type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	bytes    [routeCount]prometheus.Counter
	// known holds the counters of the statuses that are usual, so that the
	// hot path looks nothing up.
	known   [routeCount][len(usualStatuses)]prometheus.Counter
	faults  prometheus.Counter
	corrupt prometheus.Counter
	// unreached counts nars that are elsewhere and could not be had.
	unreached prometheus.Counter
}

// usualStatuses all count from zero, so that a first one is seen as a rise.
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
		Name: "narherder_http_response_body_bytes_total", Help: "Bytes of answers' bodies, as announced, by kind.",
	}, []string{"route"})
	m.registry.MustRegister(m.requests, sent)
	for route, pattern := range patterns {
		m.bytes[route] = sent.WithLabelValues(pattern)
		for i, status := range usualStatuses {
			m.known[route][i] = m.requests.WithLabelValues(pattern, strconv.Itoa(status))
		}
	}
	m.faults = counter("narherder_faults_total", "Requests that could not be answered because something here is broken.")
	m.corrupt = counter("narherder_damaged_nars_total", "Answers cut because a stored nar was not what its narinfo says.")
	m.unreached = counter("narherder_elsewhere_unreached_total", "Nars not stored here that could not be fetched from the instances that may have them.")

	gauge := func(name, help string, value func() float64) {
		m.registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("narherder_change_streams", "Instances that follow the changes here.", func() float64 { return float64(s.peers.Streams()) })
	gauge("narherder_decoders", "Nars that are being decompressed for clients, or are in memory until their clients take them.", func() float64 { return float64(s.checker.Options.Decoders.Count()) })
	gauge("narherder_decoder_memory_bytes", "Memory reserved for them.", func() float64 { return float64(s.checker.Options.Decoders.Memory()) })
	gauge("narherder_decoder_memory_limit_bytes", "Memory that may be reserved for them and background work together.", func() float64 { return float64(s.checker.Options.Decoders.Budget().Total()) })
	gauge("narherder_decoder_background_memory_bytes", "Memory of the same limit that is reserved for decompressing by mirroring, cached compressions and removal.", func() float64 { return float64(s.checker.Options.Decoders.Budget().Background()) })
	m.registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_decoder_restarts_total", Help: "Nars of slow clients that were decompressed again from the start, as others needed the memory meanwhile.",
	}, func() float64 { return float64(s.checker.Options.Decoders.Restarted()) }))
	gauge("narherder_answer_cache_bytes", "Memory that answers kept ready take.", func() float64 {
		_, size := s.answers.Usage()
		return float64(size)
	})
	gauge("narherder_answer_cache_entries", "Answers kept ready.", func() float64 {
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

// count notes an answer.
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

// bodyLength is the number of bytes that the answer's body is to have.
func bodyLength(ctx *fasthttp.RequestCtx) int {
	switch {
	case ctx.IsHead():
		return 0
	case ctx.Response.IsBodyStream():
		// Not Body, which would read it.
		return max(ctx.Response.Header.ContentLength(), 0)
	}
	return len(ctx.Response.Body())
}

// totals reads the sums of the index, in bounded time.
func (s *Server) totals() (index.Totals, error) {
	ctx, cancel := context.WithTimeout(s.live, health.Deadline)
	defer cancel()
	return s.items.Totals(ctx)
}

// totalsCollector shows the sums of the index, read when they are asked for.
type totalsCollector struct{ s *Server }

var (
	itemsDesc      = prometheus.NewDesc("narherder_items", "Store items in the index.", nil, nil)
	storedNarsDesc = prometheus.NewDesc("narherder_stored_nars", "Nars in the storage, by the index.", nil, nil)
	storedSizeDesc = prometheus.NewDesc("narherder_stored_bytes", "Length of the nars in the storage, by the index.", nil, nil)
)

func (c *totalsCollector) Describe(descs chan<- *prometheus.Desc) {
	descs <- itemsDesc
	descs <- storedNarsDesc
	descs <- storedSizeDesc
}

func (c *totalsCollector) Collect(values chan<- prometheus.Metric) {
	totals, err := c.s.totals()
	if err != nil {
		// The other metrics are worth having all the more now.
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
