package tiered

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what a cache does.
type metrics struct {
	hits, misses, evictions, checks     atomic.Int64
	fetched, filled, failures, troubles atomic.Int64

	collectors []prometheus.Collector
}

func (t *Tiered) makeMetrics() {
	m := &t.metrics
	counter := func(name, help string, value *atomic.Int64) {
		m.collectors = append(m.collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value.Load()) }))
	}
	gauge := func(name, help string, value func() float64) {
		m.collectors = append(m.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			t.mu.Lock()
			defer t.mu.Unlock()
			return value()
		}))
	}
	counter("narherder_storage_cache_hits_total", "Reads of the storage that its cache has answered, or a fetch into it that was under way.", &m.hits)
	counter("narherder_storage_cache_misses_total", "Reads of the storage that went to the storage itself, with those that have begun a fetch.", &m.misses)
	counter("narherder_storage_cache_evictions_total", "Copies removed to make room for others.", &m.evictions)
	counter("narherder_storage_cache_checks_total", "Copies compared with the storage.", &m.checks)
	counter("narherder_storage_cache_fetched_total", "Files fetched into the cache.", &m.filled)
	counter("narherder_storage_cache_fetched_bytes_total", "Bytes fetched into the cache, with those of fetches that failed.", &m.fetched)
	counter("narherder_storage_cache_failures_total", "Fetches into the cache that failed.", &m.failures)
	counter("narherder_storage_cache_troubles_total", "Failures of the cache's own disk.", &m.troubles)
	gauge("narherder_storage_cache_bytes", "Disk space of the cache's files, with those being written.", func() float64 { return float64(t.taken) })
	gauge("narherder_storage_cache_bytes_limit", "Limit of that.", func() float64 { return float64(t.max) })
	gauge("narherder_storage_cache_files", "Copies in the cache.", func() float64 { return float64(len(t.entries)) })
	gauge("narherder_storage_cache_fetching", "Files that are being fetched into the cache.", func() float64 { return float64(t.fills) })
	gauge("narherder_storage_cache_ready", "1 when the cache is used; 0 before it was read, and when it can't be.", func() float64 {
		if t.ready {
			return 1
		}
		return 0
	})
}

// Describe implements [prometheus.Collector].
func (t *Tiered) Describe(descs chan<- *prometheus.Desc) {
	for _, c := range t.metrics.collectors {
		c.Describe(descs)
	}
}

// Collect implements [prometheus.Collector].
func (t *Tiered) Collect(values chan<- prometheus.Metric) {
	for _, c := range t.metrics.collectors {
		c.Collect(values)
	}
}
