package metrics

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Bounds are the upper bounds of the histograms' buckets: narinfos take less than a
// millisecond, and large nars minutes.
var Bounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond,
	time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond,
	100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second,
	10 * time.Second, time.Minute, 10 * time.Minute,
}

// histogram is a histogram that counts many equal durations at once, and without locks.
// (prometheus.Histogram takes them one by one.)
type histogram struct {
	counts [len(Bounds) + 1]atomic.Int64
	sum    atomic.Int64 // in nanoseconds
}

func (h *histogram) add(d time.Duration, n int64) {
	i := 0
	for i < len(Bounds) && d > Bounds[i] {
		i++
	}
	h.counts[i].Add(n)
	h.sum.Add(int64(d) * n)
}

func (h *histogram) addAll(other *histogram) {
	for i := range h.counts {
		h.counts[i].Add(other.counts[i].Load())
	}
	h.sum.Add(other.sum.Load())
}

func (h *histogram) metric(desc *prometheus.Desc, labels ...string) prometheus.Metric {
	buckets, total := make(map[float64]uint64, len(Bounds)), uint64(0)
	for i, bound := range Bounds {
		total += uint64(h.counts[i].Load())
		buckets[bound.Seconds()] = total
	}
	total += uint64(h.counts[len(Bounds)].Load())
	return prometheus.MustNewConstHistogram(desc, total, time.Duration(h.sum.Load()).Seconds(), buckets, labels...)
}
