package dump

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/logonce"
)

// metrics are about the newest dump of any process.
type metrics struct {
	maker    *Maker
	failures prometheus.Counter
	logged   logonce.Filter
}

func newMetrics(m *Maker) *metrics {
	return &metrics{maker: m, failures: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "narherder_dump_failures_total", Help: "Failed attempts to make a dump.",
	})}
}

var (
	createdDesc = prometheus.NewDesc("narherder_dump_created_timestamp_seconds", "When the newest dump was made; missing before the first.", nil, nil)
	itemsDesc   = prometheus.NewDesc("narherder_dump_items", "Items in the newest dump.", nil, nil)
	bytesDesc   = prometheus.NewDesc("narherder_dump_bytes", "Length of the files of the newest dump.", []string{"file"}, nil)
)

// Describe is for [prometheus.Registerer].
func (m *Maker) Describe(descriptions chan<- *prometheus.Desc) {
	m.metrics.failures.Describe(descriptions)
	descriptions <- createdDesc
	descriptions <- itemsDesc
	descriptions <- bytesDesc
}

// Collect is for [prometheus.Registerer].
func (m *Maker) Collect(values chan<- prometheus.Metric) {
	m.metrics.failures.Collect(values)
	generations, err := m.published.Generations()
	if err != nil {
		m.metrics.logged.Log(m.log, slog.LevelWarn, time.Now(), "can't read the manifest of dumps for the metrics", "error", err)
		return
	}
	m.metrics.logged.Over(m.log, "the manifest of dumps is read for the metrics again")
	var newest Generation
	if len(generations) > 0 {
		newest = generations[0]
	}
	gauge := func(desc *prometheus.Desc, value float64, labels ...string) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value, labels...)
	}
	if len(generations) > 0 {
		gauge(createdDesc, float64(newest.CreatedAt.Unix()))
	}
	gauge(itemsDesc, float64(newest.Items))
	gauge(bytesDesc, float64(newest.Database.Size), "database")
	gauge(bytesDesc, float64(newest.Zstd.Size), "zstd")
	gauge(bytesDesc, float64(newest.Index.Size), "index")
}
