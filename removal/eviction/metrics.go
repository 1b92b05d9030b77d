package eviction

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of an evictor.
type metrics struct {
	nars, bytes, forgotten atomic.Int64

	collectors []prometheus.Collector
}

func (e *Evictor) makeMetrics() {
	m := &e.metrics
	counter := func(name, help string, value *atomic.Int64) {
		m.collectors = append(m.collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value.Load()) }))
	}
	counter("narherder_eviction_nars_total", "Items of upstreams that lost their stored nars to make room.", &m.nars)
	counter("narherder_eviction_bytes_total", "Disk space that evicted nars took.", &m.bytes)
	counter("narherder_eviction_forgotten_items_total", "Items of upstreams that were removed because no client had requested them for long.", &m.forgotten)
}

// Describe implements [prometheus.Collector].
func (e *Evictor) Describe(descs chan<- *prometheus.Desc) {
	for _, c := range e.metrics.collectors {
		c.Describe(descs)
	}
}

// Collect implements [prometheus.Collector].
func (e *Evictor) Collect(values chan<- prometheus.Metric) {
	for _, c := range e.metrics.collectors {
		c.Collect(values)
	}
}
