package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/alecthomas/kong"

	"nar-herder/compression/cached"
	"nar-herder/httpapi/engine/admission"
	"nar-herder/httpapi/keypair"
	"nar-herder/internal/recentlog"
	"nar-herder/mirror/dump"
	"nar-herder/storage/location"
	"nar-herder/storage/tiered"
)

// serverCommand has the options of the original, with its names and defaults, and then those
// that are new.
type serverCommand struct {
	databaseOption `embed:""`
	dumpOption     `embed:""`

	Host           string    `group:"listening" default:"127.0.0.1" placeholder:"HOST" help:"Name or address to listen on, or unix:PATH (default: ${default})."`
	Port           portValue `group:"listening" default:"8734" placeholder:"PORT" help:"Port to listen on (default: ${default})."`
	PidFile        string    `group:"listening" placeholder:"FILE" help:"File to write the process id to, as soon as the server starts."`
	removalOptions `embed:""`
	Mirror         *urlValue  `group:"mirror" placeholder:"URL" help:"Instance to mirror."`
	TTL            *ttlValue  `group:"caching" name:"ttl" placeholder:"DURATION" help:"How long clients may cache a narinfo."`
	NewTTL         *ttlValue  `group:"caching" name:"new-ttl" placeholder:"DURATION" help:"TTL to advertise instead of --ttl, while you change that."`
	NegativeTTL    *ttlValue  `group:"caching" name:"negative-ttl" placeholder:"DURATION" help:"How long clients may cache that an item does not exist."`
	LogLevel       levelValue `group:"logging" default:"DEBUG" placeholder:"LEVEL" help:"Least level to log: DEBUG (includes requests), INFO, WARN or ERROR (default: ${default})."`

	EnableCachedCompression                []compressionValue             `group:"compressions" sep:"none" placeholder:"TYPE[:LEVEL]" help:"Compression in which to cache popular nars: zstd, lzip or gzip. May be repeated."`
	CachedCompressionDirectory             []typed[textValue, *textValue] `group:"compressions" sep:"none" placeholder:"TYPE=DIR" help:"Directory for cached nars of a type (default: /var/cache/nar-herder/nar/TYPE; with another --database=NAME.db, NAME_cached/TYPE beside it)."`
	CachedCompressionDirectoryMaxSize      []typed[sizeValue, *sizeValue] `group:"compressions" sep:"none" placeholder:"TYPE=BYTES" help:"Maximum size of that directory."`
	CachedCompressionUnusedRemovalDuration []typed[ttlValue, *ttlValue]   `group:"compressions" sep:"none" placeholder:"TYPE=DURATION" help:"Remove cached nars that are not requested for this long."`
	CachedCompressionTTL                   []typed[ttlValue, *ttlValue]   `group:"compressions" name:"cached-compression-ttl" sep:"none" placeholder:"TYPE=DURATION" help:"TTL of narinfos that list a cached nar of this type."`
	CachedCompressionNewTTL                []typed[ttlValue, *ttlValue]   `group:"compressions" name:"cached-compression-new-ttl" sep:"none" placeholder:"TYPE=DURATION" help:"TTL to advertise instead of --cached-compression-ttl, while you change that."`
	CachedCompressionMinUses               positiveValue                  `group:"compressions" default:"3" placeholder:"N" help:"Cache a nar after this many requests (default: ${default})."`
	CachedCompressionWorkers               positiveValue                  `group:"compressions" default:"2" placeholder:"N" help:"Number of nars to compress at a time (default: ${default})."`
	CachedCompressionNarSource             string                         `group:"compressions" placeholder:"DIR-OR-URL" help:"Directory or URL to read the nars to compress from (default: the storage)."`

	StorageReadOnly      bool          `group:"storage" help:"Never write to the storage or remove from it. This is for front ends, which share the storage of another instance, usually that of --mirror."`
	StorageHardLimit     sizeValue     `group:"removal" default:"none" placeholder:"BYTES" help:"Refuse new nars above this size, including imports (default: ${default})."`
	MirrorInterval       durationValue `group:"mirror" default:"60s" placeholder:"DURATION" help:"How often to poll an original Nar Herder for changes. Other sources send theirs at once (default: ${default})."`
	DatabaseDumpInterval intervalValue `group:"dumps" default:"1d" placeholder:"DURATION" help:"How often to write a new dump if the index has changed, or none to leave that to 'nar-herder dump' (default: ${default})."`
	StorageCheckInterval durationValue `group:"removal" default:"60s" placeholder:"DURATION" help:"How often to compare the storage with its limit (default: ${default})."`
	ServeRemoteNars      deliveryValue `group:"mirror" default:"stream" enum:"stream,redirect" placeholder:"stream|redirect" help:"How to serve nars that only another instance has: stream them, or redirect clients there (default: ${default})."`

	ServeBucketNars deliveryValue `group:"storage" default:"stream" enum:"stream,redirect" placeholder:"stream|redirect" help:"How to serve nars in a bucket: stream them, or redirect clients to a presigned URL that is valid for ten minutes (default: ${default})."`

	MirrorNars      string        `group:"mirror" default:"all" enum:"all,on-demand,none" placeholder:"all|on-demand|none" help:"Which nars of --mirror to store: all, those that clients request (on-demand), or none (default: ${default})."`
	MirrorFetchers  positiveValue `group:"mirror" default:"4" placeholder:"N" help:"Number of nars to fetch from --mirror at a time, not counting those that clients request (default: ${default})."`
	MirrorBandwidth sizeValue     `group:"mirror" default:"none" placeholder:"BYTES" help:"Maximum bytes per second to fetch from --mirror, not counting what clients request (default: ${default})."`

	serverKeyOptions `embed:""`
	redirectsOption  `embed:""`
	scrubOptions     `embed:""`
	upstreamOptions  `embed:""`
	advertiseOption  `embed:""`
	pageOptions      `embed:""`

	StorageCache     string    `group:"storagecache" placeholder:"DIR" help:"Local directory that caches recently read nars of a remote storage."`
	StorageCacheSize sizeValue `group:"storagecache" default:"10GiB" placeholder:"BYTES" help:"Maximum size of --storage-cache on disk (default: ${default})."`

	XAccelRedirect   bool      `group:"listening" name:"x-accel-redirect" help:"Let nginx in front of this server send the nars, with X-Accel-Redirect as the original does."`
	NarinfoCacheSize sizeValue `group:"storage" default:"64MiB" placeholder:"BYTES" help:"Memory for recently requested narinfos (default: ${default})."`

	TrustedProxies []proxiesValue `group:"listening" sep:"none" default:"127.0.0.0/8,::1,unix" placeholder:"ADDRESS[,ADDRESS]" help:"Proxies that may name the client in X-Forwarded-For, for the log and for limits: addresses, networks, unix for a socket in the file system, or none. May be repeated (default: ${default})."`

	MaxConnections           *positiveValue `group:"listening" placeholder:"N" help:"Maximum number of open connections. At the limit, a new one closes the one that is idle longest (default: a third of the limit of open files, at most 16384)."`
	MaxConnectionsPerAddress *positiveValue `group:"listening" placeholder:"N" help:"Maximum number of connections of one client address or IPv6 /64 network. Trusted proxies and unix sockets are exempt (default: a quarter of --max-connections)."`

	controlOptions `embed:""`
	tlsOptions     `embed:""`
	logOptions     `embed:""`
}

// validate returns an error for options that contradict each other.
func (c *serverCommand) validate() error {
	if c.Storage == "" && c.Mirror == nil && len(c.Upstream) == 0 {
		return errors.New("run-server needs --storage=DIR, --mirror=URL, or --upstream=URL")
	}
	if err := c.validateUpstreams(); err != nil {
		return err
	}
	if err := validateStorage("--storage", c.Storage); err != nil {
		return err
	}
	if c.StorageReadOnly && c.Storage == "" {
		return errors.New("--storage-read-only needs a storage: add --storage")
	}
	if c.StorageHardLimit != noLimit && c.StorageLimit != noLimit && c.StorageHardLimit < c.StorageLimit {
		return errors.New("--storage-hard-limit is below --storage-limit: new nars would be refused, and none removed: raise it")
	}
	if location.IsBucket(c.Storage) && c.StorageMinimumFreeSpace != noLimit {
		return errors.New("--storage-minimum-free-space: a bucket has no file system with free space: leave it out, or use --storage-limit")
	}
	if err := c.checkMinimumFree(); err != nil {
		return err
	}
	if c.StorageCheckInterval <= 0 {
		return errors.New("--storage-check-interval=0s: want at least 1s")
	}
	if c.MirrorBandwidth == 0 {
		return errors.New("--mirror-bandwidth=0: no nar could be fetched: give a number of bytes, or none")
	}
	if location.IsBucket(c.Storage) && c.XAccelRedirect {
		return errors.New("--x-accel-redirect: the web server in front can't send nars from a bucket: leave it out, or see --serve-bucket-nars")
	}
	if c.ServeBucketNars == redirect && !location.IsBucket(c.Storage) {
		return errors.New("--serve-bucket-nars=redirect is for a storage in a bucket, s3://BUCKET/PREFIX")
	}
	if c.StorageCache != "" && (c.ServeBucketNars == redirect || c.XAccelRedirect) {
		return errors.New("--storage-cache: with --serve-bucket-nars=redirect or --x-accel-redirect, this server doesn't read nars: leave one of them out")
	}
	if err := c.scrubOptions.validate(c.Storage); err != nil {
		return err
	}
	if err := c.validateTLS(); err != nil {
		return err
	}
	return c.validateControl()
}

func (c *serverCommand) Run(ctx context.Context, s *streams, parsed *kong.Context, settings *settings) error {
	if err := c.validate(); err != nil {
		return usageError{err}
	}
	logs, err := c.openLogs(s.err)
	if err != nil {
		return err
	}
	defer logs.close()
	s.err = logs.out // so that the error at the end doesn't wait for an output that hangs
	events := recentlog.New(shownEvents)
	logs.Logger = slog.New(slog.NewMultiHandler(logs.Handler(), events))
	log := logs.Logger
	effect := settings.inEffect(parsed, c)
	running, runCtx := newTasks(ctx)
	err = untilStopped(ctx, log, running, func() error { return c.run(runCtx, effect, events, running, logs) })
	if c.PidFile != "" {
		removePidFile(c.PidFile)
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// run serves until the context ends.
func (c *serverCommand) run(ctx context.Context, effect inEffect, events *recentlog.Log, running *tasks, logs *serverLogs) (err error) {
	log := logs.Logger
	config, err := c.configure(ctx, effect, log)
	if err != nil {
		return err
	}
	config.events, config.logs = events, logs
	c.watchFiles(ctx, config, running) // early, as the log may be rotated during a long start
	sockets, err := c.reserve(ctx, config.certificate, log)
	if err != nil {
		return err
	}
	defer sockets.close()
	parts := new(subsystems)
	if parts.responder, err = c.newResponder(sockets.public, log); err != nil {
		return err
	}
	sockets.answer(ctx, c)
	if err := c.prepare(ctx, config, sockets, log); ctx.Err() != nil {
		log.Info("unfinished work resumes at the next start", "database", c.Database)
		return nil
	} else if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, parts.close(running)) }()
	if err := parts.open(ctx, c, config, log); err != nil {
		return err
	}
	if err := parts.build(ctx, c, config, sockets.starting, log); err != nil {
		return err
	}
	parts.start(ctx, running)
	sockets.serve(ctx, parts, running)
	return running.Wait()
}

// serverConfig holds the values of options that need more than parsing.
type serverConfig struct {
	effect       inEffect
	events       *recentlog.Log // for the pages
	keys         serverKeys
	storageCache *tiered.Options // nil for none
	cached       cached.Options
	certificate  *keypair.Keeper // nil without HTTPS
	logs         *serverLogs
}

// configure reads the files that options name, and returns errors of values before anything is
// changed.
func (c *serverCommand) configure(ctx context.Context, effect inEffect, log *slog.Logger) (*serverConfig, error) {
	keys, err := c.serverKeyOptions.read()
	if err != nil {
		return nil, err
	}
	if len(c.MirrorKey) > 0 && c.Mirror == nil {
		return nil, usagef("--mirror-key=%s needs --mirror", c.MirrorKey[0])
	}
	storageCache, err := c.storageCache(log)
	if err != nil {
		return nil, err
	}
	cacheOptions, err := c.cacheOptions()
	if err != nil {
		return nil, err
	}
	certificate, err := c.loadCertificate(log)
	if err != nil {
		return nil, err
	}
	for _, warning := range effect.warnings {
		log.Warn(warning)
	}
	// Check this before the conversion of the database: --database may name a dump by mistake.
	if err := dump.CheckPath(ctx, c.path(c.Database), c.Database); err != nil {
		return nil, fmt.Errorf("--database-dump: %w", err)
	}
	return &serverConfig{effect: effect, keys: keys, storageCache: storageCache, cached: cacheOptions, certificate: certificate}, nil
}

// watchFiles reloads the files that may change while the server runs: when they change, and at
// SIGHUP.
func (c *serverCommand) watchFiles(ctx context.Context, config *serverConfig, running *tasks) {
	certificate := config.certificate
	if certificate != nil {
		running.Go("watching the TLS certificate", func() error {
			certificate.Run(ctx)
			return nil
		})
	}
	running.Go("waiting for SIGHUP", func() error {
		return onHangup(ctx, func() {
			if certificate != nil {
				certificate.Reload()
			}
			config.logs.reopen()
		})
	})
}

// shownEvents is the number of log lines on the status page of the control listener.
const shownEvents = 100

// limits returns the limits on connections.
func (c *serverCommand) limits() admission.Limits {
	limits := admission.Limits{Unread: ownMemory() / unreadShare}
	if c.MaxConnections != nil {
		limits.Connections = int(*c.MaxConnections)
	}
	if c.MaxConnectionsPerAddress != nil {
		limits.PerAddress = int(*c.MaxConnectionsPerAddress)
	}
	return limits
}
