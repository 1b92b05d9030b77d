package tiered

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the counters of a cache.
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
	counter("narherder_storage_cache_hits_total", "Reads answered by the cache, including by a fetch in progress.", &m.hits)
	counter("narherder_storage_cache_misses_total", "Reads that went to the storage, including those that started a fetch.", &m.misses)
	counter("narherder_storage_cache_evictions_total", "Copies removed to make room for others.", &m.evictions)
	counter("narherder_storage_cache_checks_total", "Copies revalidated against the storage.", &m.checks)
	counter("narherder_storage_cache_fetched_total", "Files fetched into the cache.", &m.filled)
	counter("narherder_storage_cache_fetched_bytes_total", "Bytes fetched into the cache, including failed fetches.", &m.fetched)
	counter("narherder_storage_cache_failures_total", "Fetches into the cache that failed.", &m.failures)
	counter("narherder_storage_cache_troubles_total", "Errors of the cache's disk.", &m.troubles)
	gauge("narherder_storage_cache_bytes", "Disk space used by the cache, including files being written.", func() float64 { return float64(t.taken) })
	gauge("narherder_storage_cache_limit_bytes", "Limit of the cache's disk space.", func() float64 { return float64(t.max) })
	gauge("narherder_storage_cache_files", "Copies in the cache.", func() float64 { return float64(len(t.entries)) })
	gauge("narherder_storage_cache_fetching", "Files being fetched into the cache.", func() float64 { return float64(t.fills) })
	gauge("narherder_storage_cache_ready", "1 if the cache is in use; 0 during the scan at the start, and if that has failed.", func() float64 {
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
