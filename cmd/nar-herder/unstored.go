package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/logonce"
	"nar-herder/storage/index"
)

const (
	// unstoredEvery is the least interval between counts. The next count waits at least
	// unstoredRest times as long as the last one took.
	unstoredEvery = 10 * time.Second
	unstoredRest  = 100
)

// unstoredCount counts the items without a nar in the storage, after changes of the index.
type unstoredCount struct {
	index *index.Index
	log   *slog.Logger
	count atomic.Int64
}

// Run counts until the context ends.
func (u *unstoredCount) Run(ctx context.Context) {
	counted := index.Totals{Items: -1}
	var failures logonce.Filter
	for rest := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
		begun := time.Now()
		totals, err := u.index.Totals(ctx)
		if err == nil && totals != counted {
			var count int64
			if count, err = u.index.CountUnstored(ctx); err == nil {
				u.count.Store(count)
				counted = totals
			}
		}
		if err == nil {
			failures.Over(u.log, "items without nars are counted again")
		} else if ctx.Err() == nil {
			failures.Log(u.log, slog.LevelWarn, time.Now(), "can't count the items without nars: will retry", "error", err)
		}
		rest = max(unstoredEvery, unstoredRest*time.Since(begun))
	}
}

// metric returns a gauge of the count.
func (u *unstoredCount) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "narherder_items_without_nars", Help: "Items without a nar in the storage, according to the index.",
	}, func() float64 { return float64(u.count.Load()) })
}

// warnings returns the warnings of a server without other servers that may have these nars.
func (u *unstoredCount) warnings(hasOthers bool) func() []string {
	return func() []string {
		count := u.count.Load()
		if count == 0 || hasOthers {
			return nil
		}
		return []string{fmt.Sprintf("%s without a nar in the storage, and no --mirror, --upstream or stored-on criterion to get it from, so clients get 404: import the nars, or run 'nar-herder check --repair --from=URL'", countOf(int(count), "item"))}
	}
}
