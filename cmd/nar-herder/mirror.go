package main

import (
	"context"
	"log/slog"
	"time"

	"nar-herder/mirror"
	"nar-herder/mirror/health"
	"nar-herder/mirror/nars"
	"nar-herder/mirror/sourcedump"
	"nar-herder/narinfo"
	"nar-herder/narinfo/signing"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/removal/pins"
	"nar-herder/storage/index"
)

// mirrorStatus is the status of a mirror in the health.
type mirrorStatus struct {
	health.Status
	// Nars is nil if none are stored.
	Nars *nars.Status `json:"nars,omitempty"`
}

// mirrorStatus returns the status for the health. The server is a mirror.
func (s *subsystems) mirrorStatus() mirrorStatus {
	status := mirrorStatus{Status: s.follower.Status()}
	if s.fetcher != nil {
		nars := s.fetcher.Status()
		status.Nars = &nars
	}
	return status
}

// newFollower returns the follower of the mirrored instance, the first of the peers, or nil
// without one. It announces new items to the fetcher, which may be nil.
func (c *serverCommand) newFollower(store *opened, keys *signing.Keys, peers peer.Peers, fetcher *nars.Fetcher, log *slog.Logger) *mirror.Mirror {
	if c.Mirror == nil {
		return nil
	}
	var wanted func([]narinfo.PathHash)
	if fetcher != nil {
		wanted = fetcher.Wanted
	}
	return mirror.New(mirror.Options{
		Storage: store.Storage,
		Source:  peers[0], Keys: keys, Wanted: wanted,
		Downloads: sourcedump.Downloads(c.Database),
		Pinned: func(ctx context.Context) (func(narinfo.PathHash) bool, func(*index.Tx) error, error) {
			pinned, err := pins.Read(ctx, store.index)
			if err != nil {
				return nil, nil, err
			}
			return func(hash narinfo.PathHash) bool { _, kept := pinned.By(hash); return kept }, pinned.Guard, nil
		},
		Interval: time.Duration(c.MirrorInterval), Log: log,
	})
}

// newFetcher returns the fetcher that stores nars of the mirrored instance and of upstreams, or
// nil if they are only streamed through.
func (s *subsystems) newFetcher(c *serverCommand, from *failover.Source, log *slog.Logger) (*nars.Fetcher, error) {
	storesMirrored := c.Mirror != nil && c.MirrorNars != "none"
	if c.Storage == "" || c.StorageReadOnly || !storesMirrored && s.upstreams == nil {
		return nil, nil
	}
	return nars.New(s.store.Storage, from, nars.Options{
		All: storesMirrored && c.MirrorNars == "all", OnlyUpstreams: !storesMirrored,
		AtOnce: int(c.MirrorFetchers), Bandwidth: max(int64(c.MirrorBandwidth), 0),
		Limit: int64(c.StorageLimit), Decode: decodeNar, Log: log,
		Passing: s.passing,
		Spool:   c.Database + ".spool", // downloads for a bucket, which has no partial files
	})
}
