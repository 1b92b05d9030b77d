package main

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/compression"
	"nar-herder/compression/cached"
	"nar-herder/httpapi"
	"nar-herder/httpapi/health"
	"nar-herder/internal/dnssd"
	"nar-herder/mirror"
	"nar-herder/mirror/dump"
	"nar-herder/mirror/nars"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/peer/passing"
	"nar-herder/removal"
	"nar-herder/removal/eviction"
	"nar-herder/removal/withdrawal"
	"nar-herder/storage/checksums"
	"nar-herder/storage/dbspace"
	"nar-herder/storage/index"
	"nar-herder/storage/indexmetrics"
	"nar-herder/storage/location"
	"nar-herder/storage/owner"
	"nar-herder/storage/scrub"
	"nar-herder/storage/unfinished"
	"nar-herder/storage/uses"
	"nar-herder/upstream"
	"nar-herder/upstream/lookup"
)

// subsystems are the parts of a server. Those that the options do not ask for are nil.
type subsystems struct {
	store     *opened
	ownership *ownership
	uses      *uses.Counter
	peers     peer.Peers
	upstreams *upstream.Set
	finder    *lookup.Finder
	withdrawn *withdrawal.Remover
	cache     *cached.Cache
	passing   *passing.Source   // nil without peers and upstreams
	evictor   *eviction.Evictor // nil without upstreams
	remover   *removal.Remover
	fetcher   *nars.Fetcher
	follower  *mirror.Mirror
	dumps     *dump.Maker
	checksums *checksums.Keeper
	scrubber  *scrub.Scrubber
	room      *dbspace.Watch // for the database
	unstored  *unstoredCount
	server    *httpapi.Server
	responder *dnssd.Responder // started once the server answers
	changes   *index.Watcher
	items     *indexmetrics.Metrics
}

// open opens the database and the storage, and claims the storage.
func (s *subsystems) open(ctx context.Context, c *serverCommand, config *serverConfig, log *slog.Logger) (err error) {
	policy := owner.Always
	if c.Mirror != nil {
		policy = owner.IfEmpty
	}
	s.store, err = open(ctx, c.Database, c.Storage, opening{
		Options: index.Options{ReadWhenFull: true}, policy: policy, readOnly: c.StorageReadOnly, cache: config.storageCache, keys: config.keys.all(),
	}, log)
	if err != nil {
		return err
	}
	if s.ownership, err = c.own(ctx, s.store, log); err != nil {
		return err
	}
	log.Info("starting", "version", version(), "database", c.Database, "storage", s.store.name(), "pid", os.Getpid())
	config.effect.log(log)
	return nil
}

// build makes the subsystems. Each depends only on those before it, except that the remover
// later queries the number of requests that the server has answered.
func (s *subsystems) build(ctx context.Context, c *serverCommand, config *serverConfig, starting *health.Starting, log *slog.Logger) (err error) {
	store := s.store
	s.uses = uses.New(store.index, log)
	s.room = dbspace.New(store.index, nil, log)
	if err := s.record(ctx, c, log); err != nil {
		return err
	}
	if s.peers, err = c.instances(ctx, store, log); err != nil {
		return err
	}
	s.upstreams = c.newUpstreams(store, config.keys.all(), log)
	s.finder = s.newFinder(c, log)
	from := s.newFiles(c, log)
	caching, err := advertise(ctx, store.index, config.cached, log)
	if err != nil {
		return err
	}
	if err := logRestored(ctx, store.index, log); err != nil {
		return err
	}
	s.withdrawn = withdrawal.New(store.Storage, log)
	if s.cache, err = openCache(store, caching, from, s.uses, log); err != nil {
		return err
	}
	s.passing = newPassing(from, log)
	s.evictor = c.newEvictor(store, s.uses, log)
	s.remover = c.newRemover(store, s.peers, s.uses, s.evictor, func() int64 { return s.server.Answered() }, log)
	if s.fetcher, err = s.newFetcher(c, from, log); err != nil {
		return err
	}
	s.follower = c.newFollower(store, config.keys.mirror, s.peers, s.fetcher, log)
	if s.dumps, err = c.newDumps(store, s.follower, log); err != nil {
		return err
	}
	s.checksums = checksums.New(store.index, log)
	s.scrubber = c.newScrubber(store, s.peers, log)
	s.unstored = &unstoredCount{index: store.index, log: log}
	s.items = indexmetrics.New(store.index, log)
	s.server = httpapi.New(store, s.httpOptions(c, config, caching.TTLs, starting, log))
	if s.passing != nil {
		s.passing.Turns = s.server.Processors()
	}
	if s.scrubber != nil {
		s.scrubber.TakeTurns(s.server.Processors())
	}
	s.server.Registry().MustRegister(append(s.collectors(), config.keys.metric())...)
	s.server.Registry().MustRegister(config.logs.collectors()...)
	if config.certificate != nil {
		s.server.Registry().MustRegister(config.certificate)
	}
	config.keys.warn(ctx, store.index, log)
	s.changes, err = store.index.Watch(ctx)
	return err
}

// record writes the limits of the storage, and since when uses are counted, to the database for
// other commands. On a full disk, the watch of the room retries that.
func (s *subsystems) record(ctx context.Context, c *serverCommand, log *slog.Logger) error {
	record := func(ctx context.Context) error {
		return cmp.Or(
			s.uses.Begin(ctx),
			s.store.SetHardLimit(ctx, int64(c.StorageHardLimit)),
			s.store.SetMinimumFree(ctx, int64(c.StorageMinimumFreeSpace)),
		)
	}
	err := record(ctx)
	if !errors.Is(err, index.ErrFull) {
		return err
	}
	log.Error("can't record the limits of the storage, and since when uses are counted, in the database: will retry when there is room", "error", err)
	s.room.Note = record
	return nil
}

// httpOptions returns the options of the HTTP server, which serves the other subsystems.
func (s *subsystems) httpOptions(c *serverCommand, config *serverConfig, ttls narinfo.TTLs, starting *health.Starting, log *slog.Logger) httpapi.Options {
	options := httpapi.Options{
		Identity: s.store, DependsOn: s.reliesOn(c),
		Uses: s.uses, Checksums: s.checksums, Changes: s.store.index,
		Dumps: s.dumps.Published(), DumpsExpected: c.DatabaseDumpInterval > 0,
		Health:         s.health(location.Directory(c.Storage), config.certificate),
		RedirectRemote: c.ServeRemoteNars == redirect,

		Decompress: compression.NewReaderWithin, Decoders: decoderBudget(),
		TTLs: ttls, NegativeTTL: (*time.Duration)(c.NegativeTTL),
		AccelRedirect: c.XAccelRedirect,
		HideMetrics:   c.PublicMetrics == "no",
		AnswerCache:   max(int64(c.NarinfoCacheSize), 0),
		SigningKeys:   config.keys.published,

		TrustedProxies: proxies(c.TrustedProxies),
		Limits:         c.limits(),
		Starting:       starting,
		Version:        version(),
		Log:            log,
	}
	// A nil pointer in an interface would not be nil.
	if config.logs.requests != nil {
		options.AccessLog = config.logs.requests
	}
	if s.cache != nil {
		options.Cached = s.cache
	}
	if s.fetcher != nil {
		options.Remote = s.fetcher
	} else if s.passing != nil {
		options.Remote = s.passing
	}
	if s.finder != nil {
		options.Upstreams = s.finder
	}
	if c.ServeBucketNars == redirect {
		options.Presigned = s.store.bytes
	}
	if s.follower != nil {
		options.Chain = s.follower.Chain
		options.Mirror = func() any { return s.mirrorStatus() }
	}
	return options
}

// collectors returns the metrics of the subsystems.
func (s *subsystems) collectors() []prometheus.Collector {
	all := []prometheus.Collector{s.room, damageMetric(s.store.index), s.unstored.metric(), s.dumps, s.items}
	if s.upstreams != nil {
		all = append(all, s.upstreams, s.finder)
	}
	if s.passing != nil {
		all = append(all, s.passing.Unchecked)
	}
	if s.remover != nil {
		all = append(all, s.remover)
	}
	if s.evictor != nil {
		all = append(all, s.evictor)
	}
	if s.scrubber != nil {
		all = append(all, s.scrubber)
	}
	if s.fetcher != nil {
		all = append(all, s.fetcher)
	}
	if s.follower != nil {
		all = append(all, s.follower)
	}
	if bucket, ok := s.store.bytes.(prometheus.Collector); ok {
		all = append(all, bucket)
	}
	if s.store.cache != nil {
		all = append(all, s.store.cache)
	}
	if s.cache != nil {
		all = append(all, s.cache)
	}
	return all
}

// start runs the subsystems in the background until the context ends.
func (s *subsystems) start(ctx context.Context, running *tasks) {
	start := func(name string, run func(context.Context)) {
		running.Go(name, func() error {
			run(ctx)
			return nil
		})
	}
	start("watching the database", func(ctx context.Context) { s.server.Follow(ctx, s.items.Counting(s.changes)) })
	start("writing down uses", s.uses.Run)
	start("computing checksums", func(ctx context.Context) { s.checksums.Run(ctx, s.server.Forget) })
	start("counting items without nars", s.unstored.Run)
	start("watching the room for the database", s.room.Run)
	start("watching the owner of the storage", s.ownership.Run)
	start("removing withdrawn items", s.withdrawn.Run)
	start("removing unfinished uploads", func(ctx context.Context) { unfinished.Run(ctx, s.store.Storage) })
	start("making dumps", s.dumps.Run)
	if s.upstreams != nil {
		start("watching the upstreams", s.upstreams.Run)
		start("writing items of upstreams", s.finder.Run)
	}
	if s.remover != nil {
		start("keeping the storage limit", s.remover.Run)
	}
	if s.evictor != nil {
		start("forgetting items of upstreams", s.evictor.Run)
	}
	if s.scrubber != nil {
		start("scrubbing", s.scrubber.Run)
	}
	if s.fetcher != nil {
		start("fetching nars", s.fetcher.Run)
	}
	if s.follower != nil {
		start("mirroring", s.follower.Run)
	}
	if s.cache != nil {
		start("caching nars", func(ctx context.Context) { s.cache.Run(ctx, s.server.Forget) })
	}
}

// finish writes the last uses and stops downloads, after the last request was answered.
func (s *subsystems) finish(running *tasks) {
	running.Go("writing down uses", func() error {
		s.uses.Close()
		return nil
	})
	if s.finder != nil {
		running.Go("writing items of upstreams", func() error {
			s.finder.Close()
			return nil
		})
	}
	if s.fetcher != nil {
		running.Go("fetching nars", func() error {
			s.fetcher.Close()
			return nil
		})
	}
}

// close closes the subsystems after their tasks have ended.
func (s *subsystems) close(running *tasks) (err error) {
	if s.changes != nil {
		err = s.changes.Close()
	}
	if s.fetcher != nil {
		s.fetcher.Close()
	}
	if s.upstreams != nil {
		s.finder.Close() // again, if the start has failed
		s.upstreams.Close()
	}
	if s.cache != nil {
		err = errors.Join(err, running.Do("closing the cache", s.cache.Close))
	}
	if s.store != nil {
		err = errors.Join(err, running.Do("closing the database and the storage", s.store.close))
	}
	return err
}
