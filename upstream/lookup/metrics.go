package lookup

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/storage"
	"nar-herder/upstream"
)

// metrics are those of a Finder.
type metrics struct {
	found, missing, unknown, refused, failed prometheus.Counter
	all                                      []prometheus.Collector
}

func newMetrics(f *Finder) *metrics {
	lookups := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "narherder_lookups_total", Help: "Items looked up at the upstreams because they were unknown or expired, by outcome: found, missing (no upstream has it), unknown (no upstream could tell), refused (too many), failed (the database).",
	}, []string{"outcome"})
	m := &metrics{
		found: lookups.WithLabelValues("found"), missing: lookups.WithLabelValues("missing"), unknown: lookups.WithLabelValues("unknown"),
		refused: lookups.WithLabelValues("refused"), failed: lookups.WithLabelValues("failed"),
	}
	gauge := func(name, help string, value func() int) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			return float64(value())
		})
	}
	m.all = []prometheus.Collector{
		lookups,
		gauge("narherder_lookups_in_flight", "Items being looked up at the upstreams.", func() int { return len(f.questions) }),
		gauge("narherder_lookups_unwritten", "Items of upstreams that are served from memory until they are written to the database.", func() int { return len(f.found) }),
		gauge("narherder_lookups_remembered", "Remembered answers that no upstream has an item.", f.answers.Len),
	}
	return m
}

// count counts a question by its outcome.
func (m *metrics) count(err error) {
	switch {
	case err == nil:
		m.found.Inc()
	case errors.Is(err, storage.ErrNotFound):
		m.missing.Inc()
	case errors.Is(err, ErrBusy):
		m.refused.Inc()
	case errors.Is(err, upstream.ErrUnknown):
		m.unknown.Inc()
	default:
		m.failed.Inc()
	}
}

// Describe implements [prometheus.Collector].
func (f *Finder) Describe(descs chan<- *prometheus.Desc) {
	for _, collector := range f.metrics.all {
		collector.Describe(descs)
	}
}

// Collect implements [prometheus.Collector].
func (f *Finder) Collect(metrics chan<- prometheus.Metric) {
	for _, collector := range f.metrics.all {
		collector.Collect(metrics)
	}
}
