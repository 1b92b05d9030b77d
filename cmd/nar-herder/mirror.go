package main

import (
	"context"
	"log/slog"
	"time"

	"nar-herder/httpapi"
	"nar-herder/mirror"
	"nar-herder/mirror/nars"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/passing"
	"nar-herder/removal"
	"nar-herder/storage/index"
)

// mirrorStatus is how a mirror does, for the health.
type mirrorStatus struct {
	mirror.Status
	// Nars is nil where none are stored.
	Nars *nars.Status `json:"nars,omitempty"`
}

// follower makes what follows the instance that is mirrored, the first of the peers;
// nil for none. The fetcher, which may be nil, is told of new items.
func (c *serverCommand) follower(store *opened, peers peer.Peers, fetcher *nars.Fetcher, options *httpapi.Options, log *slog.Logger) *mirror.Mirror {
	if c.Mirror == nil {
		return nil
	}
	var wanted func([]narinfo.PathHash)
	if fetcher != nil {
		wanted = fetcher.Wanted
	}
	follower := mirror.New(mirror.Options{
		Storage: store.Storage, Index: store.index,
		Source: peers[0], Wanted: wanted,
		Downloads: mirror.Downloads(c.Database),
		Pinned: func(ctx context.Context) (func(narinfo.PathHash) bool, func(*index.Tx) error, error) {
			pinned, err := removal.ReadPinned(ctx, store.index)
			if err != nil {
				return nil, nil, err
			}
			return func(hash narinfo.PathHash) bool { _, kept := pinned.By(hash); return kept }, pinned.Guard, nil
		},
		Interval: time.Duration(c.MirrorInterval), Log: log,
	})
	options.Chain = follower.Chain
	options.Mirror = func() any {
		status := mirrorStatus{Status: follower.Status()}
		if fetcher != nil {
			nars := fetcher.Status()
			status.Nars = &nars
		}
		return status
	}
	return follower
}

// fetchNars makes what fetches the nars of the instance that is mirrored, and has
// the server answer with them while they come. It returns nil where none are to
// be stored: then they are streamed through.
func (c *serverCommand) fetchNars(store *opened, peers peer.Peers, options *httpapi.Options, log *slog.Logger) (*nars.Fetcher, error) {
	if c.Mirror == nil || c.Storage == "" || c.MirrorNars == "none" || c.StorageReadOnly {
		return nil, nil
	}
	fetcher, err := nars.New(store.Storage, store.index, peers, nars.Options{
		All: c.MirrorNars == "all", AtOnce: int(c.MirrorFetchers), Bandwidth: max(int64(c.MirrorBandwidth), 0),
		Limit: int64(c.StorageLimit), Decode: decodeNar, Log: log,
		Passing: options.Elsewhere.(*passing.Source),
		// Of a bucket, where nothing comes bit by bit.
		Spool: c.Database + ".spool",
	})
	if err != nil {
		return nil, err
	}
	options.Elsewhere = fetcher
	return fetcher, nil
}
