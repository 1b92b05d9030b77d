package main

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/peer"
	"nar-herder/storage/index"
)

const (
	// unstoredEvery is how often items without nars are counted at most, if the index has
	// changed, and unstoredRest how much longer than a count the rest after it is.
	unstoredEvery = 10 * time.Second
	unstoredRest  = 100
)

// unstoredCount counts the items that have no nar in the storage.
type unstoredCount struct {
	index *index.Index
	log   *slog.Logger
	count atomic.Int64
}

// Run counts until the context ends.
func (u *unstoredCount) Run(ctx context.Context) {
	counted := index.Totals{Items: -1}
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
		if err != nil && ctx.Err() == nil {
			u.log.Warn("can't count the items without nars", "error", err)
		}
		rest = max(unstoredEvery, unstoredRest*time.Since(begun))
	}
}

// metric shows the count.
func (u *unstoredCount) metric() prometheus.Collector {
	return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "narherder_items_without_nars", Help: "Items of which no nar is in the storage, by the index.",
	}, func() float64 { return float64(u.count.Load()) })
}

// warnings are for a server that asks no other instance for these nars.
func (u *unstoredCount) warnings(peers peer.Peers) func() []string {
	return func() []string {
		count := u.count.Load()
		if count == 0 || len(peers) > 0 {
			return nil
		}
		return []string{fmt.Sprintf("%s without a nar in the storage, and there is no --mirror and no stored-on criterion to get it from, so clients get a 404: import the nars, or run 'nar-herder check --repair --from=URL'", countOf(int(count), "item"))}
	}
}
