package scrub

import (
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/gauge"
	"nar-herder/storage/check"
	"nar-herder/storage/index"
)

type metrics struct {
	read, repaired   prometheus.Counter
	findings         *prometheus.CounterVec
	rate, unrepaired *atomic.Int64
	sums             *atomic.Pointer[index.Verification]
	all              []prometheus.Collector
}

func newMetrics(interval time.Duration) metrics {
	m := metrics{
		read:     prometheus.NewCounter(prometheus.CounterOpts{Name: "narherder_scrub_read_bytes_total", Help: "Bytes of stored nars that the scrub has read."}),
		repaired: prometheus.NewCounter(prometheus.CounterOpts{Name: "narherder_scrub_repaired_total", Help: "Findings of the scrub that it has repaired."}),
		findings: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "narherder_scrub_findings_total", Help: "Findings of the scrub, by kind: stored nars that are missing, of the wrong size, corrupt or unreadable (unknown), and damage of the index."}, []string{"kind"}),
		rate:     new(atomic.Int64), unrepaired: new(atomic.Int64), sums: new(atomic.Pointer[index.Verification]),
	}
	for _, kind := range []check.FindingKind{check.Missing, check.WrongSize, check.Corrupt, check.Damaged, check.Unknown} {
		m.found(kind).Add(0)
	}
	number := func(name, help string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value)
	}
	sums := func() index.Verification {
		if known := m.sums.Load(); known != nil {
			return *known
		}
		return index.Verification{}
	}
	m.all = []prometheus.Collector{
		m.read, m.repaired, m.findings,
		number("narherder_scrub_interval_seconds", "How often the scrub verifies all stored nars.", interval.Seconds),
		number("narherder_scrub_rate_limit_bytes_per_second", "Most bytes of stored nars that the scrub reads per second.", func() float64 { return float64(m.rate.Load()) }),
		number("narherder_scrub_unrepaired_items", "Items with findings of the scrub that are not repaired, including those that are hidden from clients.", func() float64 { return float64(m.unrepaired.Load()) }),
		number("narherder_scrub_never_verified_items", "Items with a stored nar that was never verified, without withdrawn ones.", func() float64 { return float64(sums().Never) }),
		gauge.Time("narherder_scrub_oldest_verification_timestamp_seconds", "When the longest unverified of the stored nars was verified, without those that never were; missing before the first.", func() time.Time { return sums().Oldest }),
		gauge.Time("narherder_scrub_newest_verification_timestamp_seconds", "When a stored nar was last verified; missing before the first.", func() time.Time { return sums().Newest }),
	}
	return m
}

// found returns the counter of findings of a kind.
func (m *metrics) found(kind check.FindingKind) prometheus.Counter {
	return m.findings.WithLabelValues(strings.ReplaceAll(kind.String(), " ", "_"))
}

// Describe implements [prometheus.Collector].
func (s *Scrubber) Describe(descriptions chan<- *prometheus.Desc) {
	for _, c := range s.metrics.all {
		c.Describe(descriptions)
	}
}

// Collect implements [prometheus.Collector].
func (s *Scrubber) Collect(values chan<- prometheus.Metric) {
	for _, c := range s.metrics.all {
		c.Collect(values)
	}
}
