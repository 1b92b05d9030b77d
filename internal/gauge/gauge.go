// Package gauge makes gauges that are missing from the metrics while they have no value.
package gauge

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Optional is a gauge. Value returns false while there is none, such as a limit that is not set.
func Optional(name, help string, labels prometheus.Labels, value func() (float64, bool)) prometheus.Collector {
	return &optional{prometheus.NewDesc(name, help, nil, labels), value}
}

// Time is a gauge of a time, which is missing while it is zero.
func Time(name, help string, value func() time.Time) prometheus.Collector {
	return Optional(name, help, nil, func() (float64, bool) {
		at := value()
		return Seconds(at), !at.IsZero()
	})
}

// Seconds returns a time in seconds since 1970.
func Seconds(at time.Time) float64 { return float64(at.UnixMilli()) / 1000 }

type optional struct {
	desc  *prometheus.Desc
	value func() (float64, bool)
}

func (o *optional) Describe(descs chan<- *prometheus.Desc) { descs <- o.desc }

func (o *optional) Collect(values chan<- prometheus.Metric) {
	if value, ok := o.value(); ok {
		values <- prometheus.MustNewConstMetric(o.desc, prometheus.GaugeValue, value)
	}
}
