package scrub

import (
	"math"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

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

func newMetrics() metrics {
	m := metrics{
		read:     prometheus.NewCounter(prometheus.CounterOpts{Name: "narherder_scrub_read_bytes_total", Help: "Bytes of stored nars that the scrub has read."}),
		repaired: prometheus.NewCounter(prometheus.CounterOpts{Name: "narherder_scrub_repaired_total", Help: "Findings of the scrub that it has repaired."}),
		findings: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "narherder_scrub_findings_total", Help: "Findings of the scrub: stored nars that are missing, of the wrong size, corrupt or unreadable (unknown), and damage of the index."}, []string{"kind"}),
		rate:     new(atomic.Int64), unrepaired: new(atomic.Int64), sums: new(atomic.Pointer[index.Verification]),
	}
	for _, kind := range []check.FindingKind{check.Missing, check.WrongSize, check.Corrupt, check.Damaged, check.Unknown} {
		m.findings.WithLabelValues(kind.String())
	}
	gauge := func(name, help string, value func() float64) prometheus.Collector {
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
		gauge("narherder_scrub_rate_limit_bytes", "Most bytes of stored nars that the scrub reads per second.", func() float64 { return float64(m.rate.Load()) }),
		gauge("narherder_scrub_unrepaired_items", "Items with findings of the scrub that are not repaired, including those that are hidden from clients.", func() float64 { return float64(m.unrepaired.Load()) }),
		gauge("narherder_scrub_never_verified_items", "Items with a stored nar that was never verified.", func() float64 { return float64(sums().Never) }),
		gauge("narherder_scrub_oldest_verification_timestamp_seconds", "When the longest unverified of the stored nars was verified, without those that never were; NaN without any.", func() float64 {
			if oldest := sums().Oldest; !oldest.IsZero() {
				return float64(oldest.UnixMilli()) / 1000
			}
			return math.NaN()
		}),
	}
	return m
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
