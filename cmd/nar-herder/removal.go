package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"nar-herder/httpapi"
	"nar-herder/internal/disk"
	"nar-herder/peer"
	"nar-herder/peer/passing"
	"nar-herder/removal"
	"nar-herder/storage/uses"
)

// elsewhereValue is what clients get of nars that are stored elsewhere.
type elsewhereValue string

const redirect elsewhereValue = "redirect"

// redirectsOption is for what asks other instances.
type redirectsOption struct {
	AllowPrivateRedirects bool `help:"Follow redirects of other instances to any server, not only to their own and over https to public addresses: for laboratories."`
}

// criteria are the values of the option.
func (c *serverCommand) criteria() []removal.Criterion {
	criteria := make([]removal.Criterion, len(c.StorageNarRemovalCriteria))
	for i, value := range c.StorageNarRemovalCriteria {
		criteria[i] = value.Criterion
	}
	return criteria
}

// instances makes clients of the one that is mirrored, of those that the criteria
// name, and of those that nars were removed for before. They are asked for nars in
// that order.
func (c *serverCommand) instances(ctx context.Context, store *opened, log *slog.Logger) (peers peer.Peers, err error) {
	self := peer.Self{Instance: store.Instance(), Storage: store.Identity, AllowPrivateRedirects: c.AllowPrivateRedirects}
	var urls []*url.URL
	if c.Mirror != nil {
		urls = append(urls, c.Mirror.URL)
	}
	for _, u := range removal.Instances(c.criteria()) {
		if !isAmong(urls, u) {
			urls = append(urls, u)
		} else if i := slices.IndexFunc(urls, func(other *url.URL) bool { return peer.SameURL(other, u) }); urls[i].User == nil {
			urls[i] = u // which may have a password
		}
	}
	relied, err := removal.ReliedOn(ctx, store.index)
	if err != nil {
		return nil, err
	}
	for _, u := range relied {
		if !isAmong(urls, u) {
			log.Info("nars were removed before because this instance has them, so it is asked for them", "instance", peer.Name(u))
			urls = append(urls, u)
		}
	}
	for _, u := range urls {
		peers = append(peers, peer.New(u, self))
	}
	return peers, nil
}

// checkMinimumFree refuses a minimum of free space that can't be: it is a slip, or the
// disk of the storage is not mounted, and all nars would go for it.
func (c *serverCommand) checkMinimumFree() error {
	if c.StorageMinimumFreeSpace <= 0 || c.Storage == "" {
		return nil
	}
	_, size, err := disk.Room(c.Storage)
	if err == nil && int64(c.StorageMinimumFreeSpace) >= size {
		return fmt.Errorf("--storage-minimum-free-space=%d: the file system of --storage=%s has only %d bytes in all: name fewer, or is its disk not mounted?", c.StorageMinimumFreeSpace, c.Storage, size)
	}
	return nil // a storage that is not there is refused when it is opened
}

// isAmong says whether one of the URLs leads to where this one does.
func isAmong(urls []*url.URL, u *url.URL) bool {
	return slices.ContainsFunc(urls, func(other *url.URL) bool { return peer.SameURL(other, u) })
}

// keepLimit makes what keeps the storage below its limit, and has the server
// answer with nars that are stored elsewhere. answered is how many requests the
// server has answered. It returns nil where there is no storage.
func (c *serverCommand) keepLimit(store *opened, peers peer.Peers, counter *uses.Counter, answered func() int64, options *httpapi.Options, log *slog.Logger) *removal.Remover {
	criteria := c.criteria()
	options.Identity = store
	if len(peers) > 0 {
		source := passing.New(peers, decoderBudget().Total()/passingShare)
		source.Log = log
		options.Elsewhere, options.RedirectElsewhere = source, c.ServeRemoteNars == redirect
	}
	if c.Storage == "" {
		return nil
	}
	if c.StorageReadOnly {
		if c.StorageLimit != noLimit || c.StorageMinimumFreeSpace != noLimit || len(criteria) > 0 {
			log.Warn("--storage-limit, --storage-minimum-free-space and --storage-nar-removal-criteria are not used with --storage-read-only: only the owner of the storage removes from it")
		}
		return nil
	}
	if c.StorageLimit != noLimit && len(criteria) == 0 {
		log.Warn("--storage-limit is given, but no --storage-nar-removal-criteria: nothing may be removed, so it can't be kept")
	}
	if c.StorageMinimumFreeSpace != noLimit && len(criteria) == 0 {
		log.Warn("--storage-minimum-free-space is given, but no --storage-nar-removal-criteria: imports and mirroring are refused below it, and nothing is removed for it")
	}
	leaving := removal.NewLeaving(nil)
	options.Leaving = leaving
	remover := removal.New(store.Storage, store.index, removal.Options{
		Limit: int64(c.StorageLimit), MinimumFree: int64(c.StorageMinimumFreeSpace), Criteria: criteria, Leaving: leaving, Uses: counter,
		Peer: func(u *url.URL) *peer.Peer {
			return peers[slices.IndexFunc(peers, func(p *peer.Peer) bool { return p.Is(u) })]
		},
		Answered: answered, Decode: decodeNar,
		Interval: time.Duration(c.StorageCheckInterval), Log: log,
	})
	options.Warnings = remover.Warnings
	return remover
}
