package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/peer"
	"nar-herder/peer/failover"
	"nar-herder/peer/passing"
	"nar-herder/removal"
	"nar-herder/removal/criteria"
	"nar-herder/removal/dependence"
	"nar-herder/removal/eviction"
	"nar-herder/storage/uses"
)

// deliveryValue is how to serve nars that are not on this machine.
type deliveryValue string

const redirect deliveryValue = "redirect"

// redirectsOption is the option of commands that send requests to other instances.
type redirectsOption struct {
	AllowPrivateRedirects bool `group:"mirror" help:"Follow redirects of other instances to any server, not only to themselves and to public https addresses. For test networks."`
}

// removalOptions are the options about the removal of nars.
type removalOptions struct {
	Storage                   string           `group:"storage" placeholder:"DIR|s3://BUCKET" help:"Directory or s3://BUCKET/PREFIX?… of the stored nars."`
	StorageLimit              sizeValue        `group:"removal" default:"none" placeholder:"BYTES" help:"Remove nars to keep the storage below this size (default: ${default})."`
	StorageMinimumFreeSpace   sizeValue        `group:"removal" default:"none" placeholder:"BYTES" help:"Remove nars to keep this much free on the storage's file system, and refuse new ones below it (default: ${default})."`
	StorageNarRemovalCriteria []criterionValue `group:"removal" sep:"none" placeholder:"CONDITION[,CONDITION]" help:"Nars that may be removed to keep the limit: those that meet all conditions of one value. Conditions are stored-on=URL, unused-for=DURATION, added-before=DAY-OR-DURATION, tag=KEY=VALUE, no-tag=KEY=VALUE and unreferenced. May be repeated."`
}

// criteria returns the values of the option.
func (c *removalOptions) criteria() []criteria.Criterion {
	given := make([]criteria.Criterion, len(c.StorageNarRemovalCriteria))
	for i, value := range c.StorageNarRemovalCriteria {
		given[i] = value.Criterion
	}
	return given
}

// instances returns clients for the mirrored instance, for those that the criteria name, and
// for those that earlier removals depend on. They are asked for nars in that order.
func (c *serverCommand) instances(ctx context.Context, store *opened, log *slog.Logger) (peers peer.Peers, err error) {
	var urls []*url.URL
	if c.Mirror != nil {
		urls = append(urls, c.Mirror.URL)
	}
	for _, u := range criteria.Instances(c.criteria()) {
		if !containsURL(urls, u) {
			urls = append(urls, u)
		} else if i := slices.IndexFunc(urls, func(other *url.URL) bool { return peer.SameURL(other, u) }); urls[i].User == nil {
			urls[i] = u // it may have a password
		}
	}
	dependencies, err := dependence.Recorded(ctx, store.index)
	if err != nil {
		return nil, err
	}
	for _, u := range dependencies {
		if !containsURL(urls, u) {
			log.Info("requesting nars from this instance too: earlier removals depend on it", "server", peer.Name(u))
			urls = append(urls, u)
		}
	}
	for _, u := range urls {
		peers = append(peers, peer.New(u, c.self(store)))
	}
	return peers, nil
}

// self describes this instance to other servers.
func (c *serverCommand) self(store *opened) peer.Self {
	return peer.Self{Instance: store.Instance(), Storage: store.Identity, AllowPrivateRedirects: c.AllowPrivateRedirects}
}

// checkMinimumFree returns an error for a minimum of free space above the size of the file
// system: all nars would be removed. It is a typing error, or the disk is not mounted.
func (c *serverCommand) checkMinimumFree() error {
	if c.StorageMinimumFreeSpace <= 0 || c.Storage == "" {
		return nil
	}
	_, size, err := disk.Room(c.Storage)
	if err == nil && int64(c.StorageMinimumFreeSpace) >= size {
		return fmt.Errorf("--storage-minimum-free-space=%d: the file system of --storage=%s has only %d bytes in all: give a smaller number, or is its disk not mounted?", c.StorageMinimumFreeSpace, c.Storage, size)
	}
	return nil // opening a missing storage fails later
}

// containsURL reports whether one of the URLs names the same instance as u.
func containsURL(urls []*url.URL, u *url.URL) bool {
	return slices.ContainsFunc(urls, func(other *url.URL) bool { return peer.SameURL(other, u) })
}

// newPassing returns the source that streams nars of other servers, or nil without any.
func newPassing(from *failover.Source, log *slog.Logger) *passing.Source {
	if from == nil {
		return nil
	}
	source := passing.New(from, decoderBudget().Total()/passingShare)
	source.Log = log
	return source
}

// newRemover returns the remover of the storage, or nil without a storage that this
// instance may remove from. answered returns how many requests the server has answered.
func (c *serverCommand) newRemover(store *opened, peers peer.Peers, counter *uses.Counter, evictor *eviction.Evictor, answered func() int64, log *slog.Logger) *removal.Remover {
	if c.Storage == "" {
		return nil
	}
	c.warnAboutRemoval(log)
	if c.StorageReadOnly {
		return nil
	}
	options := c.removal(c.criteria(), peers)
	options.Uses, options.Answered, options.Decode = counter, answered, decodeNar
	options.Interval, options.Log = time.Duration(c.StorageCheckInterval), log
	if evictor != nil {
		options.Evictor = evictor
	}
	return removal.New(store.Storage, options)
}

// warnAboutRemoval logs options of the storage that have no effect, or that are missing.
func (c *serverCommand) warnAboutRemoval(log *slog.Logger) {
	hasLimit, hasMinimum, hasCriteria := c.StorageLimit != noLimit, c.StorageMinimumFreeSpace != noLimit, len(c.StorageNarRemovalCriteria) > 0
	if c.StorageReadOnly {
		if hasLimit || hasMinimum || hasCriteria {
			log.Warn("--storage-limit, --storage-minimum-free-space and --storage-nar-removal-criteria have no effect with --storage-read-only: only the owner of the storage removes from it")
		}
		return
	}
	mayEvict := len(c.Upstream) > 0
	if hasLimit && !hasCriteria && !mayEvict {
		log.Warn("--storage-limit is given, but no --storage-nar-removal-criteria: nothing may be removed, so the limit can't be kept")
	}
	if hasMinimum && !hasCriteria && !mayEvict {
		log.Warn("--storage-minimum-free-space is given, but no --storage-nar-removal-criteria: imports and mirroring are refused below it, but nothing is removed")
	}
	if mayEvict && !hasLimit && !hasMinimum {
		log.Warn("--upstream is given without --storage-limit or --storage-minimum-free-space: the storage grows until its disk is full")
	}
	if !hasLimit && !hasMinimum && hasCriteria {
		log.Warn("--storage-nar-removal-criteria is given without --storage-limit or --storage-minimum-free-space: nothing is removed")
	}
}

// reliesOn returns what this instance states about its dependence on others when they ask
// whether it has a nar; nil for no statement.
func (s *subsystems) reliesOn(c *serverCommand) func() peer.Statement {
	switch {
	case s.remover != nil:
		return s.remover.ReliesOn
	case c.Storage != "": // only its owner removes from it
		return func() peer.Statement { return peer.Statement{} }
	}
	return nil
}

// settleTime overrides how long a new server removes nothing by stored-on. Builds for tests
// set it.
var settleTime string

// removal returns the options of a remover.
func (c *removalOptions) removal(criteria []criteria.Criterion, peers peer.Peers) removal.Options {
	settle, _ := time.ParseDuration(settleTime)
	return removal.Options{
		Limit: int64(c.StorageLimit), MinimumFree: int64(c.StorageMinimumFreeSpace), Criteria: criteria, Settle: settle,
		Peer: func(u *url.URL) *peer.Peer {
			return peers[slices.IndexFunc(peers, func(p *peer.Peer) bool { return p.Is(u) })]
		},
	}
}
