// Package history keeps what a server has answered in each minute of the last day, in memory of
// a fixed size.
package history

import (
	"context"
	"math"
	"sync"
	"time"

	"nar-herder/httpapi/metrics"
	"nar-herder/internal/pace"
)

const (
	// Step is the time between samples.
	Step = time.Minute
	// kept is the number of samples: those of a day, and the one before it.
	kept = int(24*time.Hour/Step) + 1
)

// Sample is what a server has done from its start until a time.
type Sample struct {
	At time.Time
	metrics.Snapshot
}

// History is the samples of a day. Use [New] to make one.
type History struct {
	take func() Sample

	mu   sync.Mutex
	ring [kept]Sample
	next int // where the next sample goes
	size int
}

// New makes a history of the samples that take returns.
func New(take func() Sample) *History { return &History{take: take} }

// Run takes samples until the context ends.
func (h *History) Run(ctx context.Context) {
	for {
		h.Add(h.take())
		if pace.Sleep(ctx, Step) != nil {
			return
		}
	}
}

// Add adds a sample, and drops one that is a day old.
func (h *History) Add(s Sample) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring[h.next] = s
	h.next = (h.next + 1) % kept
	h.size = min(h.size+1, kept)
}

// mostBins is the number of points of a plot.
const mostBins = 144

// Bin is what a server has done in a part of the day. Values that are unknown are NaN.
type Bin struct {
	// Requests and Bytes are per second.
	Requests, Bytes float64
	// Hits is the share of narinfos that were answered from memory.
	Hits float64
	// Median and P99 are quantiles of the times to the first byte of narinfos and nars, in
	// seconds.
	Median, P99 float64
}

// Bins returns the bins of the last day, or of the time since the first sample, but at least of
// an hour; and how long that is. The last bin ends now. There are none before the first sample.
func (h *History) Bins() (bins []Bin, window time.Duration) {
	now := h.take()
	samples := h.samples()
	if len(samples) == 0 {
		return nil, 0
	}
	window = min(max(now.At.Sub(samples[0].At), time.Hour), 24*time.Hour)
	count := min(mostBins, int(window/Step))
	width := window / time.Duration(count)
	begin := now.At.Add(-window)
	bins = make([]Bin, count)
	next := 0
	var before *Sample // the last one up to the beginning of the bin
	for i := range bins {
		end := begin.Add(time.Duration(i+1) * width)
		var last *Sample
		for next < len(samples) && !samples[next].At.After(end) {
			if samples[next].At.After(end.Add(-width)) || before == nil {
				last = &samples[next]
			}
			if before == nil {
				before = last
			}
			next++
		}
		if i == count-1 {
			last = &now
		}
		bins[i] = between(before, last)
		if last != nil {
			before = last
		}
	}
	return bins, window
}

func (h *History) samples() []Sample {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := make([]Sample, 0, h.size)
	for i := range h.size {
		all = append(all, h.ring[(h.next-h.size+i+kept)%kept])
	}
	return all
}

// between returns what was done between two samples. Either may be nil.
func between(a, b *Sample) Bin {
	unknown := math.NaN()
	bin := Bin{unknown, unknown, unknown, unknown, unknown}
	if a == nil || b == nil {
		return bin
	}
	seconds := b.At.Sub(a.At).Seconds()
	if seconds <= 0 {
		return bin
	}
	bin.Requests = max(0, float64(b.Requests-a.Requests)) / seconds
	bin.Bytes = max(0, float64(b.Bytes-a.Bytes)) / seconds
	if hits, misses := float64(b.Hits-a.Hits), float64(b.Misses-a.Misses); hits+misses > 0 {
		bin.Hits = hits / (hits + misses)
	}
	bin.Median, bin.P99 = quantile(a, b, 0.5), quantile(a, b, 0.99)
	return bin
}

// quantile estimates a quantile of the times of the answers between two samples, as Prometheus
// does: evenly within a bucket.
func quantile(a, b *Sample, q float64) float64 {
	total := int64(0)
	for i := range b.FirstByte {
		total += b.FirstByte[i] - a.FirstByte[i]
	}
	if total <= 0 {
		return math.NaN()
	}
	rank, below, lower := q*float64(total), 0.0, 0.0
	for i, bound := range metrics.Bounds {
		count := float64(b.FirstByte[i] - a.FirstByte[i])
		if below+count >= rank && count > 0 {
			return lower + (bound.Seconds()-lower)*(rank-below)/count
		}
		below, lower = below+count, bound.Seconds()
	}
	return lower
}
