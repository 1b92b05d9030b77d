// Package figures reads the metrics of a server for its pages, so that these show what /metrics
// does, by the same names.
package figures

import (
	"math"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

// Figures are the values of metrics at a time, by their names.
type Figures map[string]*dto.MetricFamily

// Read gathers the metrics, without those that fail.
func Read(from prometheus.Gatherer) Figures {
	families, _ := from.Gather() // returns the others with an error
	figures := make(Figures, len(families))
	for _, family := range families {
		figures[family.GetName()] = family
	}
	return figures
}

// Has reports whether there is a metric of the name.
func (f Figures) Has(name string) bool { return f[name] != nil }

// Sum returns the sum of a metric over its labels, except those with a label that differs from
// the pairs of label and value. It is 0 without any, and leaves out NaN.
func (f Figures) Sum(name string, pairs ...string) (sum float64) {
	for _, m := range f[name].GetMetric() {
		if v := value(m); matches(m, pairs) && !math.IsNaN(v) {
			sum += v
		}
	}
	return sum
}

// Int is [Figures.Sum] without its fraction.
func (f Figures) Int(name string, pairs ...string) int64 { return int64(f.Sum(name, pairs...)) }

// Labelled is the value of a metric with a label.
type Labelled struct {
	Label string
	Value float64
}

// By returns the values of a metric by one of its labels.
func (f Figures) By(name, label string, pairs ...string) (all []Labelled) {
	at := make(map[string]int)
	for _, m := range f[name].GetMetric() {
		if !matches(m, pairs) {
			continue
		}
		key := labelOf(m, label)
		i, ok := at[key]
		if !ok {
			i = len(all)
			at[key] = i
			all = append(all, Labelled{Label: key})
		}
		all[i].Value += value(m)
	}
	return all
}

func value(m *dto.Metric) float64 {
	switch {
	case m.GetCounter() != nil:
		return m.GetCounter().GetValue()
	case m.GetGauge() != nil:
		return m.GetGauge().GetValue()
	}
	return m.GetUntyped().GetValue()
}

func labelOf(m *dto.Metric, name string) string {
	for _, pair := range m.GetLabel() {
		if pair.GetName() == name {
			return pair.GetValue()
		}
	}
	return ""
}

func matches(m *dto.Metric, pairs []string) bool {
	for i := 0; i+1 < len(pairs); i += 2 {
		if labelOf(m, pairs[i]) != pairs[i+1] {
			return false
		}
	}
	return true
}

// maxAge is how long a Reader returns the same figures, however many people look at pages.
const maxAge = 3 * time.Second

// Reader reads figures, at most once in a few seconds.
type Reader struct {
	From prometheus.Gatherer

	mu   sync.Mutex
	at   time.Time
	last Figures
}

// Figures returns figures that are at most a few seconds old. Callers must not change them.
func (r *Reader) Figures() Figures {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil || time.Since(r.at) > maxAge {
		r.last, r.at = Read(r.From), time.Now()
	}
	return r.last
}
