package main

import (
	"errors"
	"log/slog"
	"time"

	"nar-herder/peer"
	"nar-herder/storage/check"
	"nar-herder/storage/scrub"
)

// scrubOptions are the options about the scrub.
type scrubOptions struct {
	ScrubInterval intervalValue   `group:"storage" default:"90d" placeholder:"DURATION" help:"How often to verify all stored nars and all narinfos in the index, at a low rate, and repair them, or none to leave that to 'nar-herder check' (default: ${default})."`
	RepairFrom    []instanceValue `group:"storage" sep:"none" placeholder:"URL" help:"Instance to fetch damaged nars from, besides --mirror and those of stored-on criteria. May be repeated."`
}

func (o *scrubOptions) validate(storage string) error {
	switch {
	case len(o.RepairFrom) > 0 && o.ScrubInterval == 0:
		return errors.New("--repair-from has no effect with --scrub-interval=none: leave one of them out")
	case len(o.RepairFrom) > 0 && storage == "":
		return errors.New("--repair-from needs a storage: add --storage")
	}
	return nil
}

// newScrubber returns the scrubber of the storage, or nil if the interval is none. Its sources are
// the peers, from which clients get nars as well, and then those of --repair-from.
func (c *serverCommand) newScrubber(store *opened, peers peer.Peers, log *slog.Logger) *scrub.Scrubber {
	if c.ScrubInterval == 0 {
		return nil
	}
	options := scrub.Options{Interval: time.Duration(c.ScrubInterval), Decode: decodeNar, Log: log}
	for _, p := range peers {
		options.Sources = append(options.Sources, peerSource{p})
	}
	for _, from := range c.RepairFrom {
		options.Sources = append(options.Sources, check.Source(peerSource{peer.New(from.url.URL, c.self(store))}))
	}
	return scrub.New(store.Storage, options)
}
