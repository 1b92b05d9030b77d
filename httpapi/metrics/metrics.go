// Package metrics counts answers by their route, and faults.
package metrics

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
	"github.com/valyala/fasthttp"

	"nar-herder/httpapi/health"
	"nar-herder/internal/logonce"
	"nar-herder/storage/index"
)

// Totals reads the totals of the index at each scrape, in bounded time.
type Totals struct {
	Read func(context.Context) (index.Totals, error)
	Live context.Context
	Log  *slog.Logger

	logged logonce.Filter
}

// Get returns the totals.
func (t *Totals) Get() (index.Totals, error) {
	ctx, cancel := context.WithTimeout(t.Live, health.Deadline)
	defer cancel()
	return t.Read(ctx)
}

var (
	itemsDesc      = prometheus.NewDesc("narherder_items", "Store items in the index.", nil, nil)
	storedNarsDesc = prometheus.NewDesc("narherder_stored_nars", "Nars in the storage, according to the index.", nil, nil)
	storedSizeDesc = prometheus.NewDesc("narherder_stored_bytes", "Length of the nars in the storage, according to the index.", nil, nil)
)

// Describe implements [prometheus.Collector].
func (t *Totals) Describe(descs chan<- *prometheus.Desc) {
	descs <- itemsDesc
	descs <- storedNarsDesc
	descs <- storedSizeDesc
}

// Collect implements [prometheus.Collector].
func (t *Totals) Collect(values chan<- prometheus.Metric) {
	totals, err := t.Get()
	if err != nil {
		t.logged.Log(t.Log, slog.LevelWarn, time.Now(), "can't read the totals for the metrics", "error", err)
		return
	}
	t.logged.Over(t.Log, "the totals are read for the metrics again")
	values <- prometheus.MustNewConstMetric(itemsDesc, prometheus.GaugeValue, float64(totals.Items))
	values <- prometheus.MustNewConstMetric(storedNarsDesc, prometheus.GaugeValue, float64(totals.StoredNars))
	values <- prometheus.MustNewConstMetric(storedSizeDesc, prometheus.GaugeValue, float64(totals.StoredSize))
}

// Serve answers with the metrics of a registry.
func Serve(ctx *fasthttp.RequestCtx, registry *prometheus.Registry) error {
	families, err := registry.Gather()
	if err != nil {
		return err
	}
	format := expfmt.NewFormat(expfmt.TypeTextPlain)
	encoder := expfmt.NewEncoder(ctx.Response.BodyWriter(), format)
	for _, family := range families {
		if err := encoder.Encode(family); err != nil {
			return err
		}
	}
	ctx.Response.Header.SetContentType(string(format))
	return nil
}
