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

// removalOptions say what is removed from the storage, and when.
type removalOptions struct {
	Storage                   string           `placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	StorageLimit              sizeValue        `default:"none" placeholder:"BYTES" help:"Size that the storage is kept below (default: ${default})."`
	StorageMinimumFreeSpace   sizeValue        `default:"none" placeholder:"BYTES" help:"Bytes that stay free on the storage's file system: removal makes room for them, and imports and mirroring are refused below (default: ${default})."`
	StorageNarRemovalCriteria []criterionValue `sep:"none" placeholder:"CONDITION[,CONDITION]" help:"When a nar may be removed to keep the limit: when all conditions hold, of stored-on=URL, unused-for=DURATION, added-before=DAY-OR-DURATION, tag=KEY=VALUE, no-tag=KEY=VALUE, unreferenced. May be repeated; any one suffices."`
}

// criteria are the values of the option.
func (c *removalOptions) criteria() []removal.Criterion {
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
		options.ReliesOn = func() peer.Statement { return peer.Statement{} }
		return nil
	}
	if c.StorageLimit != noLimit && len(criteria) == 0 {
		log.Warn("--storage-limit is given, but no --storage-nar-removal-criteria: nothing may be removed, so it can't be kept")
	}
	if c.StorageMinimumFreeSpace != noLimit && len(criteria) == 0 {
		log.Warn("--storage-minimum-free-space is given, but no --storage-nar-removal-criteria: imports and mirroring are refused below it, and nothing is removed for it")
	}
	if c.StorageLimit == noLimit && c.StorageMinimumFreeSpace == noLimit && len(criteria) > 0 {
		log.Warn("--storage-nar-removal-criteria are given, but neither --storage-limit nor --storage-minimum-free-space: nothing is removed")
	}
	removing := c.removal(criteria, peers)
	removing.Uses, removing.Answered, removing.Decode = counter, answered, decodeNar
	removing.Interval, removing.Log = time.Duration(c.StorageCheckInterval), log
	remover := removal.New(store.Storage, removing)
	options.ReliesOn = remover.ReliesOn
	return remover
}

// settleTime replaces how long a server removes nothing by stored-on, in tests of this
// program: it is set when the program is built.
var settleTime string

// removal are the options of a remover as they were given.
func (c *removalOptions) removal(criteria []removal.Criterion, peers peer.Peers) removal.Options {
	settle, _ := time.ParseDuration(settleTime)
	return removal.Options{
		Limit: int64(c.StorageLimit), MinimumFree: int64(c.StorageMinimumFreeSpace), Criteria: criteria, Settle: settle,
		Peer: func(u *url.URL) *peer.Peer {
			return peers[slices.IndexFunc(peers, func(p *peer.Peer) bool { return p.Is(u) })]
		},
	}
}
