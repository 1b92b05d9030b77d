package main

import (
	"log/slog"
	"net/url"
	"slices"
	"time"

	"nar-herder/peer"
	"nar-herder/removal/eviction"
	"nar-herder/storage/uses"
)

// newEvictor returns the evictor of nars that the upstreams have, or nil without upstreams, or
// without a storage that this instance may remove from.
func (c *serverCommand) newEvictor(store *opened, counter *uses.Counter, log *slog.Logger) *eviction.Evictor {
	if len(c.Upstream) == 0 || c.StorageReadOnly {
		return nil
	}
	return eviction.New(store.Storage, eviction.Options{
		IsUpstream: c.isUpstream, Uses: counter,
		Limit: int64(c.StorageLimit), Keep: time.Duration(c.UpstreamKeep), Log: log,
	})
}

// isUpstream reports whether the URL of an origin in the database is that of an upstream in the
// options.
func (o *upstreamOptions) isUpstream(recorded string) bool {
	u, err := url.Parse(recorded)
	return err == nil && slices.ContainsFunc(o.Upstream, func(upstream upstreamValue) bool { return peer.SameURL(upstream.url, u) })
}
