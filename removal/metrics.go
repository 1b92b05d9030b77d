package removal

import (
	"errors"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/gauge"
	"nar-herder/storage"
)

// metrics are the counters of a remover.
type metrics struct {
	removed, bytes, withdrawn, withdrawnBytes, decided, failed atomic.Int64

	collectors []prometheus.Collector
}

// counts are values of the counters.
type counts struct{ removed, bytes, withdrawn, withdrawnBytes int64 }

func (m *metrics) counts() counts {
	return counts{m.removed.Load(), m.bytes.Load(), m.withdrawn.Load(), m.withdrawnBytes.Load()}
}

// count adds freed bytes and items.
func (m *metrics) count(freed storage.Freed) {
	m.removed.Add(int64(freed.Items))
	m.bytes.Add(freed.Usage)
}

func (r *Remover) makeMetrics() {
	m := &r.metrics
	counter := func(name, help string, value *atomic.Int64) {
		m.collectors = append(m.collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: name, Help: help}, func() float64 { return float64(value.Load()) }))
	}
	number := func(name, help string, value func() float64) {
		m.collectors = append(m.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	counter("narherder_removal_nars_total", "Nars removed from the storage because of its limit or the minimum of free space, while other instances have them.", &m.removed)
	counter("narherder_removal_withdrawn_total", "Items withdrawn because of the storage's limit or the minimum of free space, and removed after their grace period.", &m.withdrawn)
	counter("narherder_removal_bytes_total", "Disk space that removed nars took.", &m.bytes)
	counter("narherder_removal_decisions_total", "Nars that were checked for removal.", &m.decided)
	counter("narherder_removal_failed_questions_total", "Failed requests that ask other instances for nars.", &m.failed)
	m.collectors = append(m.collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "narherder_removal_failed_deletions_total", Help: "Failed attempts to delete a file from the storage.",
	}, func() float64 { return float64(r.storage.NotDeleted()) }))
	number("narherder_storage_usage_bytes", "Disk space that the storage takes.", func() float64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return float64(r.usage)
	})
	number("narherder_storage_withdrawn_bytes", "Bytes of withdrawn nars that are still stored.", func() float64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		return float64(r.pending.Size)
	})
	limit := func(name, help string, value func() int64) {
		m.collectors = append(m.collectors, gauge.Optional(name, help, nil, func() (float64, bool) { n := value(); return float64(n), n >= 0 }))
	}
	limit("narherder_storage_limit_bytes", "Limit of the storage; missing without one.", r.limit.Load)
	if _, _, err := r.storage.FreeSpace(); !errors.Is(err, errors.ErrUnsupported) {
		m.collectors = append(m.collectors, gauge.Optional("narherder_storage_free_bytes", "Free bytes on the file system of the storage; missing if unknown.", nil, r.freeBytes))
		limit("narherder_storage_minimum_free_bytes", "Minimum of free bytes on the file system of the storage; missing without one.", func() int64 { return r.space.minimum })
	}
	number("narherder_storage_excess_bytes", "Bytes above the limit of the storage, apart from withdrawn nars.", func() float64 {
		r.mu.Lock()
		defer r.mu.Unlock()
		if limit := r.limit.Load(); limit >= 0 {
			return float64(max(0, r.usage-r.pending.Size-limit))
		}
		return 0
	})
}

// Describe implements [prometheus.Collector].
func (r *Remover) Describe(descs chan<- *prometheus.Desc) {
	for _, c := range r.metrics.collectors {
		c.Describe(descs)
	}
}

// Collect implements [prometheus.Collector].
func (r *Remover) Collect(values chan<- prometheus.Metric) {
	for _, c := range r.metrics.collectors {
		c.Collect(values)
	}
}
