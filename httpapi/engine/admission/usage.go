package admission

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Register adds the metrics of the connections.
func (s *Connections) Register(registry prometheus.Registerer) {
	gauge := func(name, help string, value func() float64) {
		registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, value))
	}
	gauge("narherder_http_connections", "Open connections.", func() float64 {
		s.mu.Lock()
		defer s.mu.Unlock()
		return float64(s.open.size())
	})
	gauge("narherder_http_connections_limit", "Connections that may be open.", func() float64 { return float64(s.limits.Connections) })
	gauge("narherder_http_unread_bytes", "Memory for pipelined requests of clients that don't read their answers.", func() float64 { return float64(s.unread.Load()) })
	gauge("narherder_http_unread_limit_bytes", "Limit of the memory for pipelined requests of clients that don't read their answers.", func() float64 { return float64(s.limits.Unread) })
	for reason, name := range closeReasonNames {
		registry.MustRegister(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name:        "narherder_http_connections_closed_total",
			Help:        "Connections closed to stay within the limits: idle, stalled, busy ones of addresses with many connections, ones with unread answers, and new ones of addresses with too many connections.",
			ConstLabels: prometheus.Labels{"reason": name},
		}, func() float64 { return float64(s.closed[reason].Load()) }))
	}
}

// Usage is how much of the limits is used.
type Usage struct {
	Open    int              // connections
	Closing int              // connections that were closed and have not ended
	Idle    []time.Time      // since when idle connections wait for a request
	Stalled []time.Time      // since when stalled clients have read nothing
	Unread  int64            // memory for requests that were read ahead, in bytes
	Closed  map[string]int64 // how many connections were closed to stay within the limits, by reason
}

// Usage returns the current usage.
func (s *Connections) Usage() Usage {
	s.mu.Lock()
	defer s.mu.Unlock()
	u := Usage{Open: s.open.size(), Closing: s.open.leaving, Unread: s.unread.Load(), Closed: make(map[string]int64)}
	for reason, name := range closeReasonNames {
		u.Closed[name] = s.closed[reason].Load()
	}
	for m := range s.open.members {
		if v, ok := m.waits(); ok && v.stalled {
			u.Stalled = append(u.Stalled, v.since)
		} else if ok {
			u.Idle = append(u.Idle, v.since)
		}
	}
	return u
}
