package main

import (
	"log/slog"
	"time"

	"nar-herder/upstream/lookup"
)

// newFinder returns the finder of items that only the upstreams have; nil without upstreams.
func (s *subsystems) newFinder(c *serverCommand, log *slog.Logger) *lookup.Finder {
	if s.upstreams == nil {
		return nil
	}
	return lookup.New(s.store.Storage, s.upstreams, lookup.Options{
		NegativeTTL: (*time.Duration)(c.NegativeTTL), DownIsNotFound: c.UpstreamDown == "not-found", Log: log,
	})
}
