package nars

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what a fetcher does.
type metrics struct {
	fetched, bytes atomic.Int64
	failures       [len(reasons)]atomic.Int64

	collectors []prometheus.Collector
}

func (f *Fetcher) makeMetrics() {
	m := &f.metrics
	counter := func(name, help string, labels prometheus.Labels, value *atomic.Int64) {
		m.collectors = append(m.collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: labels}, func() float64 { return float64(value.Load()) }))
	}
	gauge := func(name, help string, value func() float64) {
		m.collectors = append(m.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("narherder_mirror_nars_missing", "About how many items lack nars that may be fetched.", func() float64 { return float64(f.Status().Missing) })
	gauge("narherder_mirror_nars_in_flight", "Nars that are being fetched.", func() float64 { return float64(f.Status().InFlight) })
	counter("narherder_mirror_nars_fetched_total", "Nars that were fetched and stored.", nil, &m.fetched)
	counter("narherder_mirror_nars_fetched_bytes_total", "Bytes of the nars that were fetched and stored.", nil, &m.bytes)
	for why, name := range reasons {
		counter("narherder_mirror_nars_failures_total", "Nars that could not be fetched or stored, by reason.", prometheus.Labels{"reason": name}, &m.failures[why])
	}
}

// Describe implements [prometheus.Collector].
func (f *Fetcher) Describe(descs chan<- *prometheus.Desc) {
	for _, c := range f.metrics.collectors {
		c.Describe(descs)
	}
}

// Collect implements [prometheus.Collector].
func (f *Fetcher) Collect(values chan<- prometheus.Metric) {
	for _, c := range f.metrics.collectors {
		c.Collect(values)
	}
}
