package upstream

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/storage"
)

// outcome is that of a request for a narinfo.
type outcome int

const (
	found outcome = iota
	absent
	skipped // because the upstream is down
	failed  // without an answer
	status  // that doesn't tell
	invalid // answer
	outcomes
)

var outcomeNames = [outcomes]string{"found", "absent", "skipped", "failed", "status", "invalid"}

// counts are those of an upstream.
type counts struct {
	requests [outcomes]atomic.Int64
	refused  [4]atomic.Int64 // by storage.RefusalReasons
}

// refuse counts a narinfo that isn't authorized.
func (c *counts) refuse(err error) {
	for i, reason := range storage.RefusalReasons {
		if storage.Reason(err) == reason {
			c.refused[i].Add(1)
		}
	}
}

var (
	requestsMetric = prometheus.NewDesc("narherder_upstream_narinfo_requests_total", "Narinfos that upstreams were asked for, by outcome.", []string{"upstream", "outcome"}, nil)
	refusedMetric  = prometheus.NewDesc("narherder_upstream_refused_narinfos_total", "Narinfos of upstreams that were refused because of their signatures, by reason.", []string{"upstream", "reason"}, nil)
	upMetric       = prometheus.NewDesc("narherder_upstream_up", "1 for an upstream that is asked, 0 for one that is skipped because it can't be reached.", []string{"upstream"}, nil)
)

// Describe implements [prometheus.Collector].
func (s *Set) Describe(descs chan<- *prometheus.Desc) {
	descs <- requestsMetric
	descs <- refusedMetric
	descs <- upMetric
}

// Collect implements [prometheus.Collector].
func (s *Set) Collect(metrics chan<- prometheus.Metric) {
	for _, u := range s.upstreams {
		for i, name := range outcomeNames {
			metrics <- prometheus.MustNewConstMetric(requestsMetric, prometheus.CounterValue, float64(u.requests[i].Load()), u.label, name)
		}
		for i, reason := range storage.RefusalReasons {
			metrics <- prometheus.MustNewConstMetric(refusedMetric, prometheus.CounterValue, float64(u.refused[i].Load()), u.label, reason.Label())
		}
		up := 0.0
		if u.IsUp() {
			up = 1
		}
		metrics <- prometheus.MustNewConstMetric(upMetric, prometheus.GaugeValue, up, u.label)
	}
}
