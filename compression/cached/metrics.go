package cached

import (
	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/gauge"
)

// kindMetrics are the metrics of a type.
type kindMetrics struct {
	made, failed, withdrawn, deleted, seconds prometheus.Counter
	running                                   prometheus.Gauge
}

// makeMetrics makes the metrics.
func (c *Cache) makeMetrics() {
	counter := func(name, help string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"type"})
		c.add(v)
		return v
	}
	made := counter("narherder_cached_nars_made_total", "Cached nars that were made.")
	failed := counter("narherder_cached_nars_failed_total", "Cached nars that could not be made.")
	withdrawn := counter("narherder_cached_nars_withdrawn_total", "Cached nars that were removed from narinfos.")
	deleted := counter("narherder_cached_nars_deleted_total", "Cached nars that were deleted after their withdrawal.")
	seconds := counter("narherder_cached_nars_seconds_total", "Time for making cached nars, in seconds.")
	running := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "narherder_cached_nars_running", Help: "Cached nars that are being made."}, []string{"type"})
	c.add(running)
	for name, k := range c.kinds {
		k.metrics = kindMetrics{
			made: made.WithLabelValues(name), failed: failed.WithLabelValues(name), withdrawn: withdrawn.WithLabelValues(name),
			deleted: deleted.WithLabelValues(name), seconds: seconds.WithLabelValues(name), running: running.WithLabelValues(name),
		}
		c.add(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "narherder_cached_bytes", Help: "Disk space of the cached nars, including those being written.", ConstLabels: prometheus.Labels{"type": name},
		}, func() float64 { return float64(k.space.usage()) }))
		c.add(gauge.Optional("narherder_cached_limit_bytes", "Limit of the disk space of the cached nars; missing without one.", prometheus.Labels{"type": name},
			func() (float64, bool) { return float64(k.space.max), k.space.max >= 0 }))
	}
	c.add(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "narherder_cached_nars_queued", Help: "Cached nars waiting to be made.",
	}, func() float64 { waiting, _ := c.queue.counts(); return float64(waiting) }))
	c.add(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "narherder_cached_nars_failing", Help: "Cached nars that could not be made and will be retried.",
	}, func() float64 { _, failing := c.queue.counts(); return float64(failing) }))
}

func (c *Cache) add(collector prometheus.Collector) { c.collectors = append(c.collectors, collector) }

// Describe implements [prometheus.Collector].
func (c *Cache) Describe(descriptions chan<- *prometheus.Desc) {
	for _, collector := range c.collectors {
		collector.Describe(descriptions)
	}
}

// Collect implements [prometheus.Collector].
func (c *Cache) Collect(metrics chan<- prometheus.Metric) {
	for _, collector := range c.collectors {
		collector.Collect(metrics)
	}
}
