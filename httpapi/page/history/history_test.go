package history

import (
	"math"
	"strings"
	"testing"
	"time"

	"nar-herder/httpapi/metrics"
)

var begin = time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)

// sampled returns a history with a sample at each of the first minutes, of a server that does
// 60 requests per minute, of which every third narinfo is in memory.
func sampled(minutes int) *History {
	var now Sample
	h := New(func() Sample { return now })
	for i := range minutes + 1 {
		n := int64(60 * i)
		now = Sample{begin.Add(time.Duration(i) * time.Minute), metrics.Snapshot{Requests: n, Bytes: 1000 * n, Hits: n / 3, Misses: n - n/3}}
		now.FirstByte[2], now.FirstByte[5] = n*9/10, n-n*9/10
		h.Add(now)
	}
	return h
}

func TestBins(t *testing.T) {
	t.Parallel()
	for minutes, want := range map[int]struct {
		window time.Duration
		bins   int
	}{1: {time.Hour, 60}, 59: {time.Hour, 60}, 90: {90 * time.Minute, 90}, 300: {5 * time.Hour, 144}, 1440: {24 * time.Hour, 144}, 5000: {24 * time.Hour, 144}} {
		bins, window := sampled(minutes).Bins()
		if len(bins) != want.bins || window != want.window {
			t.Errorf("%d minutes: %d bins of %v", minutes, len(bins), window)
		}
		known := 0
		for i, bin := range bins {
			if math.IsNaN(bin.Requests) {
				continue
			}
			known++
			if math.Abs(bin.Requests-1) > 0.01 || math.Abs(bin.Bytes-1000) > 10 || math.Abs(bin.Hits-1.0/3) > 0.01 ||
				bin.Median < 0.00025 || bin.Median > 0.0005 || bin.P99 < 0.0025 || bin.P99 > 0.005 {
				t.Errorf("%d minutes, bin %d: %+v", minutes, i, bin)
			}
		}
		if minimum := min(minutes, want.bins) * 9 / 10; known < minimum {
			t.Errorf("%d minutes: %d bins are known, want %d", minutes, known, minimum)
		}
	}
}

// TestBinsOfOldServer: memory and plots are bounded, and the oldest samples are dropped.
func TestBinsOfOldServer(t *testing.T) {
	t.Parallel()
	h := sampled(3 * kept)
	all := h.samples()
	if len(all) != kept || !all[0].At.Equal(begin.Add(time.Duration(3*kept-kept+1)*Step)) {
		t.Errorf("%d samples from %v", len(all), all[0].At)
	}
	for i := 1; i < len(all); i++ {
		if all[i].At.Sub(all[i-1].At) != Step {
			t.Fatalf("samples are out of order: %v, %v", all[i-1].At, all[i].At)
		}
	}
}

func TestBinsWithoutSamples(t *testing.T) {
	t.Parallel()
	h := New(func() Sample { return Sample{At: begin} })
	if bins, _ := h.Bins(); bins != nil {
		t.Errorf("%v", bins)
	}
	h.Add(Sample{At: begin})
	bins, window := h.Bins()
	if window != time.Hour || !math.IsNaN(bins[0].Requests) || !math.IsNaN(bins[59].Requests) {
		t.Errorf("%v %+v", window, bins)
	}
	// The clock was set back.
	h.Add(Sample{At: begin.Add(-time.Hour)})
	if _, window := h.Bins(); window != time.Hour {
		t.Errorf("%v", window)
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	a, b := new(Sample), new(Sample)
	if q := quantile(a, b, 0.5); !math.IsNaN(q) {
		t.Errorf("of nothing: %v", q)
	}
	b.FirstByte[0] = 100
	if q := quantile(a, b, 0.5); math.Abs(q-0.00005) > 1e-9 {
		t.Errorf("within the first bucket: %v", q)
	}
	b.FirstByte[len(b.FirstByte)-1] = 1000
	if q := quantile(a, b, 0.99); q != metrics.Bounds[len(metrics.Bounds)-1].Seconds() {
		t.Errorf("beyond the last bound: %v", q)
	}
}

func TestPlot(t *testing.T) {
	t.Parallel()
	nan := math.NaN()
	format := func(v float64) string { return strings.TrimSuffix(strings.TrimRight(coordinate(v), "0"), ".") }
	p := NewPlot("x", time.Hour, Nice, format, []float64{nan, 1, 3, nan, 0, nan})
	if p.Top != "5" || p.Begin != "−60 min" || p.Summary != "now 0, mean 1.3, at most 3" || p.IsEmpty {
		t.Errorf("%+v", p)
	}
	if want := "M66.4 83.2L128.8 49.6M253.6 100.0h-3"; p.Line != want {
		t.Errorf("line %s, want %s", p.Line, want)
	}
	for name, values := range map[string][]float64{"none": nil, "unknown": {nan, nan}} {
		if p := NewPlot("x", time.Hour, Nice, format, values); !p.IsEmpty || p.Line != "" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	for _, values := range [][]float64{{0}, {0, 0}, {1e12}, {1e-9, 1e12}} {
		if p := NewPlot("x", 24*time.Hour, Nice, format, values, values); p.IsEmpty || strings.Contains(p.Line+p.Area+p.Second, "NaN") || strings.Contains(p.Line+p.Area, "Inf") {
			t.Errorf("%v: %+v", values, p)
		}
	}
	for v, want := range map[float64]float64{0: 1, 0.3: 0.5, 1: 1, 1.5: 2, 3: 5, 7: 10, 1001: 2000} {
		if got := Nice(v); math.Abs(got-want) > 1e-9 {
			t.Errorf("Nice(%v) = %v, want %v", v, got, want)
		}
	}
	for v, want := range map[float64]float64{0: 1, 900: 1000, 1001: 1024, 7000: 10 << 10, 3 << 20: 5 << 20} {
		if got := NiceBytes(v); got != want {
			t.Errorf("NiceBytes(%v) = %v, want %v", v, got, want)
		}
	}
}
