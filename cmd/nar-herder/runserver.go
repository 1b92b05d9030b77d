package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/alecthomas/kong"

	"nar-herder/compression/cached"
	"nar-herder/httpapi"
	"nar-herder/mirror/dump"
	"nar-herder/storage/tiered"
)

// serverCommand has the options of the original, by their names and defaults,
// and at the end our own.
type serverCommand struct {
	databaseOption `embed:""`
	dumpOption     `embed:""`

	Host           string    `default:"127.0.0.1" placeholder:"HOST" help:"Name or address to listen on, or unix:PATH (default: ${default})."`
	Port           portValue `default:"8734" placeholder:"PORT" help:"Port to listen on (default: ${default})."`
	PidFile        string    `placeholder:"FILE" help:"Where to write the process id, first of all."`
	removalOptions `embed:""`
	Mirror         *urlValue  `placeholder:"URL" help:"The instance to mirror."`
	TTL            *ttlValue  `name:"ttl" placeholder:"DURATION" help:"How long clients may keep a narinfo."`
	NewTTL         *ttlValue  `name:"new-ttl" placeholder:"DURATION" help:"What to advertise instead of --ttl while that is being changed."`
	NegativeTTL    *ttlValue  `name:"negative-ttl" placeholder:"DURATION" help:"How long clients may believe that an item is not here."`
	LogLevel       levelValue `default:"DEBUG" placeholder:"LEVEL" help:"DEBUG, which logs requests, INFO, WARN or ERROR (default: ${default})."`

	EnableCachedCompression                []compressionValue             `sep:"none" placeholder:"TYPE[:LEVEL]" help:"Compression to make of nars that are asked for often: zstd, lzip or gzip. May be repeated."`
	CachedCompressionDirectory             []typed[textValue, *textValue] `sep:"none" placeholder:"TYPE=DIR" help:"Where to keep them (default: /var/cache/nar-herder/nar/TYPE, or NAME_cached/TYPE beside another --database NAME.db than the default)."`
	CachedCompressionDirectoryMaxSize      []typed[sizeValue, *sizeValue] `sep:"none" placeholder:"TYPE=BYTES" help:"Size of the directory at the most."`
	CachedCompressionUnusedRemovalDuration []typed[ttlValue, *ttlValue]   `sep:"none" placeholder:"TYPE=DURATION" help:"When to remove one that nobody asks for."`
	CachedCompressionTTL                   []typed[ttlValue, *ttlValue]   `name:"cached-compression-ttl" sep:"none" placeholder:"TYPE=DURATION" help:"--ttl of narinfos that show one."`
	CachedCompressionNewTTL                []typed[ttlValue, *ttlValue]   `name:"cached-compression-new-ttl" sep:"none" placeholder:"TYPE=DURATION" help:"--new-ttl of narinfos that show one."`
	CachedCompressionMinUses               positiveValue                  `default:"3" placeholder:"N" help:"How often a nar is asked for before (default: ${default})."`
	CachedCompressionWorkers               positiveValue                  `default:"2" placeholder:"N" help:"How many are made at a time (default: ${default})."`
	CachedCompressionNarSource             string                         `placeholder:"DIR-OR-URL" help:"Where to read nars from (default: the storage)."`

	StorageReadOnly      bool           `help:"Never write to the storage, nor remove from it, as a front end of the instance that owns it; with --mirror, that is usually its owner."`
	StorageHardLimit     sizeValue      `default:"none" placeholder:"BYTES" help:"Size of the storage above which nothing more is taken in, by imports neither (default: ${default})."`
	MirrorInterval       durationValue  `default:"60s" placeholder:"DURATION" help:"How often an original Nar Herder is asked for its changes; others tell theirs at once (default: ${default})."`
	DatabaseDumpInterval intervalValue  `default:"1d" placeholder:"DURATION" help:"How often the copy that others download is made anew, where something has changed; none for by 'nar-herder dump' alone (default: ${default})."`
	StorageCheckInterval durationValue  `default:"60s" placeholder:"DURATION" help:"How often the storage is compared with its limit (default: ${default})."`
	ServeRemoteNars      elsewhereValue `default:"stream" enum:"stream,redirect" placeholder:"stream|redirect" help:"How to answer with nars that were removed and are stored on another instance: stream them through, or redirect there (default: ${default})."`

	ServeBucketNars elsewhereValue `default:"stream" enum:"stream,redirect" placeholder:"stream|redirect" help:"How to answer with nars that are in a bucket: stream them through, or redirect to the bucket with a URL that is good for ten minutes (default: ${default})."`

	MirrorNars      string        `default:"all" enum:"all,on-demand,none" placeholder:"all|on-demand|none" help:"Which nars of --mirror are put into the storage: all, on-demand those that clients ask for, or none (default: ${default})."`
	MirrorFetchers  positiveValue `default:"4" placeholder:"N" help:"How many nars are fetched from --mirror at a time, apart from those that clients ask for (default: ${default})."`
	MirrorBandwidth sizeValue     `default:"none" placeholder:"BYTES" help:"How much is fetched from --mirror a second at the most, apart from what clients ask for (default: ${default})."`

	redirectsOption `embed:""`

	StorageCache     string    `placeholder:"DIR" help:"Directory on a disk of this machine for nars that were read from the storage lately, where that is far away."`
	StorageCacheSize sizeValue `default:"10GiB" placeholder:"BYTES" help:"What the files in it take of the disk at the most (default: ${default})."`

	XAccelRedirect   bool      `name:"x-accel-redirect" help:"Leave the sending of nars to the nginx in front, as the original does."`
	SigningKey       string    `placeholder:"FILE" help:"The public key that signs the narinfos, to hand out at /signing-key.pub."`
	NarinfoCacheSize sizeValue `default:"64MiB" placeholder:"BYTES" help:"Memory for narinfos that were asked for lately (default: ${default})."`

	TrustedProxies []proxiesValue `sep:"none" default:"127.0.0.0/8,::1,unix" placeholder:"ADDRESS[,ADDRESS]" help:"Addresses and networks of proxies that are trusted to name the client in X-Forwarded-For, for the log and for limits; unix for a socket in the file system, none for no proxy. May be repeated (default: ${default})."`

	MaxConnections           *positiveValue `placeholder:"N" help:"Connections that may be open. The longest idle one is closed for a new one (default: a third of the limit of open files, at most 16384)."`
	MaxConnectionsPerAddress *positiveValue `placeholder:"N" help:"How many of them one client address, or IPv6 network of 64 bits, may have; trusted proxies and unix sockets are exempt (default: a quarter of --max-connections)."`

	controlOptions `embed:""`
}

// validate refuses options that contradict each other.
func (c *serverCommand) validate() error {
	if c.Storage == "" && c.Mirror == nil {
		return errors.New("run-server needs --storage=DIR, --mirror=URL, or both")
	}
	if err := validateStorage("--storage", c.Storage); err != nil {
		return err
	}
	if c.StorageReadOnly && c.Storage == "" {
		return errors.New("--storage-read-only: there is no storage to read: add --storage")
	}
	if c.StorageHardLimit != noLimit && c.StorageLimit != noLimit && c.StorageHardLimit < c.StorageLimit {
		return errors.New("--storage-hard-limit is below --storage-limit, so that nothing would be taken in and nothing be removed: raise it")
	}
	if isBucket(c.Storage) && c.StorageMinimumFreeSpace != noLimit {
		return errors.New("--storage-minimum-free-space: a bucket has no file system with free space: leave it out, or use --storage-limit")
	}
	if err := c.checkMinimumFree(); err != nil {
		return err
	}
	if c.StorageCheckInterval <= 0 {
		return errors.New("--storage-check-interval=0s: it must be a second at least")
	}
	if c.MirrorBandwidth == 0 {
		return errors.New("--mirror-bandwidth=0: nothing would ever come: name a number of bytes, or none")
	}
	if isBucket(c.Storage) && c.XAccelRedirect {
		return errors.New("--x-accel-redirect: the web server in front can't send what is in a bucket: leave it out, or see --serve-bucket-nars")
	}
	if c.ServeBucketNars == redirect && !isBucket(c.Storage) {
		return errors.New("--serve-bucket-nars=redirect is for a storage in a bucket, s3://BUCKET/PREFIX")
	}
	if c.StorageCache != "" && (c.ServeBucketNars == redirect || c.XAccelRedirect) {
		return errors.New("--storage-cache: with --serve-bucket-nars=redirect or --x-accel-redirect, nars don't come through here: leave one of them out")
	}
	return c.validateControl()
}

func (c *serverCommand) Run(ctx context.Context, s *streams, parsed *kong.Context, settings *settings) error {
	if err := c.validate(); err != nil {
		return usageError{err}
	}
	log, closeLog := newLogger(s.err, slog.Level(c.LogLevel))
	defer closeLog()
	effect := settings.inEffect(parsed, c)
	running, runCtx := newTasks(ctx)
	err := untilStopped(ctx, log, running, func() error { return c.run(runCtx, effect, running, log) })
	if c.PidFile != "" {
		removePidFile(c.PidFile)
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// run serves until the context ends.
func (c *serverCommand) run(ctx context.Context, effect inEffect, running *tasks, log *slog.Logger) (err error) {
	config, err := c.configure(ctx, effect, log)
	if err != nil {
		return err
	}
	sockets, err := c.reserve(ctx, log)
	if err != nil {
		return err
	}
	defer sockets.close()
	sockets.answer(ctx, c)
	if err := c.prepare(ctx, sockets, log); ctx.Err() != nil {
		log.Info("unfinished work resumes at the next start", "database", c.Database)
		return nil
	} else if err != nil {
		return err
	}
	parts := new(subsystems)
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

// serverConfig is what the options amount to that need more than parsing.
type serverConfig struct {
	effect       inEffect
	signingKey   []byte
	storageCache *tiered.Options // nil for none
	cached       cached.Options
}

// configure reads the files that options name, and refuses values that can't work before
// anything is changed.
func (c *serverCommand) configure(ctx context.Context, effect inEffect, log *slog.Logger) (*serverConfig, error) {
	key, err := readSigningKey(c.SigningKey)
	if err != nil {
		return nil, err
	}
	storageCache, err := c.storageCache(log)
	if err != nil {
		return nil, err
	}
	cacheOptions, err := c.cacheOptions()
	if err != nil {
		return nil, err
	}
	for _, warning := range effect.warnings {
		log.Warn(warning)
	}
	// A dump that is named as the database by mistake must not be converted.
	if err := dump.CheckPath(ctx, c.path(c.Database), c.Database); err != nil {
		return nil, fmt.Errorf("--database-dump: %w", err)
	}
	return &serverConfig{effect, key, storageCache, cacheOptions}, nil
}

// limits are those of connections.
func (c *serverCommand) limits() httpapi.Limits {
	limits := httpapi.Limits{Unread: ownMemory() / unreadShare}
	if c.MaxConnections != nil {
		limits.Connections = int(*c.MaxConnections)
	}
	if c.MaxConnectionsPerAddress != nil {
		limits.PerAddress = int(*c.MaxConnectionsPerAddress)
	}
	return limits
}

// readSigningKey reads the key that is handed out, and makes sure that it is
// not the other half.
func readSigningKey(name string) ([]byte, error) {
	if name == "" {
		return nil, nil
	}
	key, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("--signing-key: %w", err)
	}
	if !strings.HasPrefix(strings.TrimSpace(string(key)), "(public-key") || strings.Contains(string(key), "private-key") {
		return nil, usagef("--signing-key=%s: not a public key: name a file that begins with \"(public-key\", such as /etc/guix/signing-key.pub", name)
	}
	return key, nil
}
