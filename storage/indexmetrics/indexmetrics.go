// Package indexmetrics reports what is in the index, and what has changed there, as metrics.
package indexmetrics

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/gauge"
	"nar-herder/internal/logonce"
	"nar-herder/storage/index"
)

// Run is a kind of command whose last end is recorded.
type Run string

const (
	Import Run = "last_import"
	Check  Run = "last_check"
)

// Record records in the index that a command has ended now.
func Record(ctx context.Context, x *index.Index, run Run) error {
	return x.Update(ctx, func(tx *index.Tx) error { return tx.SetSetting(string(run), time.Now().UTC().Format(time.RFC3339)) })
}

// timeout bounds the queries of a scrape.
const timeout = 3 * time.Second

// Metrics is a [prometheus.Collector].
type Metrics struct {
	index *index.Index
	log   *slog.Logger
	// logged remembers logged failures.
	logged logonce.Filter

	added, withdrawn atomic.Int64
}

// New makes the metrics of an index.
func New(x *index.Index, log *slog.Logger) *Metrics { return &Metrics{index: x, log: log} }

// Changes are those of an index, as an [index.Watcher] reports them.
type Changes interface {
	Poll() (changes []index.Change, complete bool, err error)
}

// Counting returns changes that are counted once they are polled.
func (m *Metrics) Counting(changes Changes) Changes { return counting{changes, m} }

type counting struct {
	Changes
	metrics *Metrics
}

func (c counting) Poll() (changes []index.Change, complete bool, err error) {
	changes, complete, err = c.Changes.Poll()
	for i := range changes {
		switch changes[i].Kind {
		case index.Added:
			c.metrics.added.Add(1)
		case index.Removed:
			c.metrics.withdrawn.Add(1)
		}
	}
	return changes, complete, err
}

var (
	addedDesc     = prometheus.NewDesc("narherder_items_added_total", "Narinfos that were added, replaced or restored after a withdrawal, by all processes.", nil, nil)
	withdrawnDesc = prometheus.NewDesc("narherder_items_withdrawn_total", "Items that were withdrawn, or removed at once, by all processes.", nil, nil)
	removedDesc   = prometheus.NewDesc("narherder_items_removed_total", "Items that this server has deleted from the index, most of them after their withdrawal.", nil, nil)
	waitingDesc   = prometheus.NewDesc("narherder_withdrawn_items", "Withdrawn items that are still in the index.", nil, nil)
	pinsDesc      = prometheus.NewDesc("narherder_pins", "Pinned items.", nil, nil)
	bytesDesc     = prometheus.NewDesc("narherder_database_bytes", "Size of the database, without the write-ahead log.", nil, nil)
	walDesc       = prometheus.NewDesc("narherder_database_wal_bytes", "Size of the database's write-ahead log.", nil, nil)
	importDesc    = prometheus.NewDesc("narherder_import_end_timestamp_seconds", "When the last import that has added something ended; missing before the first.", nil, nil)
	checkDesc     = prometheus.NewDesc("narherder_check_end_timestamp_seconds", "When the last complete check with --verify or --repair ended; missing before the first.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (m *Metrics) Describe(descs chan<- *prometheus.Desc) {
	for _, desc := range []*prometheus.Desc{addedDesc, withdrawnDesc, removedDesc, waitingDesc, pinsDesc, bytesDesc, walDesc, importDesc, checkDesc} {
		descs <- desc
	}
}

// Collect implements [prometheus.Collector].
func (m *Metrics) Collect(values chan<- prometheus.Metric) {
	counter := func(desc *prometheus.Desc, n int64) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n))
	}
	counter(addedDesc, m.added.Load())
	counter(withdrawnDesc, m.withdrawn.Load())
	counter(removedDesc, m.index.Removed())
	if err := m.read(values); err != nil {
		m.logged.Log(m.log, slog.LevelWarn, time.Now(), "can't read the index for the metrics", "error", err)
	} else {
		m.logged.Over(m.log, "the index is read for the metrics again")
	}
}

func (m *Metrics) read(values chan<- prometheus.Metric) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	set := func(desc *prometheus.Desc, value float64) {
		values <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, value)
	}
	database, log, err := m.index.Sizes()
	if err != nil {
		return err
	}
	set(bytesDesc, float64(database))
	set(walDesc, float64(log))
	pins, err := m.index.CountPins(ctx)
	if err != nil {
		return err
	}
	set(pinsDesc, float64(pins))
	withdrawn, err := m.index.WithdrawnCount(ctx)
	if err != nil {
		return err
	}
	set(waitingDesc, float64(withdrawn))
	for run, desc := range map[Run]*prometheus.Desc{Import: importDesc, Check: checkDesc} {
		text, err := m.index.Setting(ctx, string(run))
		if err != nil {
			return err
		}
		if at, err := time.Parse(time.RFC3339, text); err == nil { // or else there was none
			set(desc, gauge.Seconds(at))
		}
	}
	return nil
}
