package main

import (
	"log/slog"

	"nar-herder/httpapi"
	"nar-herder/mirror/nars"
	"nar-herder/peer"
	"nar-herder/peer/passing"
)

// fetchNars makes what fetches the nars of the instance that is mirrored, and has
// the server answer with them while they come. It returns nil where none are to
// be stored: then they are streamed through.
func (c *serverCommand) fetchNars(store *opened, peers peer.Peers, options *httpapi.Options, log *slog.Logger) (*nars.Fetcher, error) {
	if c.Mirror == nil || c.Storage == "" || c.MirrorNars == "none" || c.StorageReadOnly {
		return nil, nil
	}
	fetcher, err := nars.New(store.Storage, peers, nars.Options{
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
