package figures

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

func TestFigures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		registry := prometheus.NewRegistry()
		counters := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "c_total"}, []string{"a", "b"})
		unknown := prometheus.NewGauge(prometheus.GaugeOpts{Name: "unknown"})
		unknown.Set(math.NaN())
		registry.MustRegister(counters, unknown)
		counters.WithLabelValues("x", "1").Add(2)
		counters.WithLabelValues("x", "2").Add(3)
		counters.WithLabelValues("y", "1").Add(4)
		r := &Reader{From: registry}
		f := r.Figures()
		if f.Sum("c_total") != 9 || f.Sum("c_total", "a", "x") != 5 || f.Int("c_total", "a", "x", "b", "2") != 3 || f.Sum("c_total", "a", "z") != 0 || f.Sum("none") != 0 {
			t.Errorf("sums of %v", f)
		}
		if !f.Has("c_total") || f.Has("none") || f.Sum("unknown") != 0 {
			t.Errorf("%v", f)
		}
		by := f.By("c_total", "a", "b", "1")
		if len(by) != 2 || by[0] != (Labelled{"x", 2}) || by[1] != (Labelled{"y", 4}) {
			t.Errorf("%v", by)
		}
		counters.WithLabelValues("x", "1").Add(1)
		if got := r.Figures().Sum("c_total"); got != 9 {
			t.Errorf("at once: %v", got)
		}
		time.Sleep(maxAge + time.Second)
		if got := r.Figures().Sum("c_total"); got != 10 {
			t.Errorf("later: %v", got)
		}
	})
}
