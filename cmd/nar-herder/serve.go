package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/alecthomas/kong"
	"github.com/coreos/go-systemd/v22/daemon"

	"nar-herder/compression"
	"nar-herder/httpapi"
	"nar-herder/httpapi/engine"
	"nar-herder/httpapi/health"
	"nar-herder/mirror/dump"
	"nar-herder/peer/passing"
	"nar-herder/removal"
	"nar-herder/storage/checksums"
	"nar-herder/storage/dbspace"
	"nar-herder/storage/index"
	"nar-herder/storage/owner"
	"nar-herder/storage/uses"
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

	starting *health.Starting // answers until there is a server
}

// pidFileWait is how long the process id waits for the sockets: a supervisor
// waits a second for it at the least.
const pidFileWait = 500 * time.Millisecond

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
	running := newTasks()
	err := untilStopped(ctx, log, running, func() error { return c.run(ctx, effect, running, log) })
	if c.PidFile != "" {
		removePidFile(c.PidFile)
	}
	if err == nil {
		log.Info("stopped")
	}
	return err
}

// run serves until the context ends. What it starts in the background is among what
// is running.
func (c *serverCommand) run(ctx context.Context, effect inEffect, running *tasks, log *slog.Logger) (err error) {
	key, err := readSigningKey(c.SigningKey)
	if err != nil {
		return err
	}
	storageCache, err := c.storageCache()
	if err != nil {
		return err
	}
	cacheOptions, err := c.cacheOptions()
	if err != nil {
		return err
	}
	cacheOptions.Decoders = decoderBudget()
	for _, warning := range effect.warnings {
		log.Warn(warning)
	}
	c.DatabaseDump = c.path(c.Database)
	// Before a dump that is named as the database by mistake is converted.
	if err := dump.CheckPath(ctx, c.DatabaseDump, c.Database); err != nil {
		return fmt.Errorf("--database-dump: %w", err)
	}
	// The sockets and the lock come first, so that a second server by mistake changes
	// nothing of the one that runs. The supervisor that waits for the process id does not wait
	// for a slow name server, though.
	var listeners, control []net.Listener
	var listenErr error
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		if listeners, listenErr = listen(ctx, c.Host, c.Port); listenErr == nil {
			if control, listenErr = c.listenControl(ctx); listenErr != nil {
				closeAll(listeners)
			}
		}
	}()
	select {
	case <-listened:
		if listenErr != nil {
			return listenErr
		}
	case <-time.After(pidFileWait):
	}
	lock, err := lockServer(c.Database, log)
	if err != nil {
		<-listened
		closeAll(listeners)
		closeAll(control)
		return err
	}
	defer lock.Close()
	if c.PidFile != "" {
		if err := writePidFile(c.PidFile); err != nil {
			return err
		}
	}
	<-listened
	if listenErr != nil {
		return listenErr
	}
	defer closeAll(listeners)
	if len(listeners) > 0 {
		if err := lock.SetAddress(listeners[0].Addr().String()); err != nil {
			return err
		}
	}
	c.serveControl(control, log)
	defer c.closeControl()
	if err := index.CheckLog(c.Database); err != nil {
		return err
	}
	endStarting := c.serveStarting(ctx, listeners, log)
	defer endStarting()
	for _, prepare := range []func(context.Context, []net.Listener, *slog.Logger) error{c.convertInPlace, c.beginMirror, c.migrate} {
		if err := prepare(ctx, listeners, log); ctx.Err() != nil {
			log.Info("unfinished work resumes at the next start", "database", c.Database)
			return nil
		} else if err != nil {
			return err
		}
	}
	if storageCache != nil {
		storageCache.Log = log
	}
	policy := owner.Always
	if c.Mirror != nil {
		policy = owner.IfEmpty
	}
	store, err := open(ctx, c.Database, c.Storage, opening{index.Options{ReadWhenFull: true}, policy, c.StorageReadOnly, storageCache}, log)
	if err != nil {
		return err
	}
	defer running.Do("closing the database and the storage", func() { err = errors.Join(err, store.close()) })
	ownership, err := c.own(ctx, store, log)
	if err != nil {
		return err
	}
	log.Info("starting", "version", version(), "database", c.Database, "storage", store.name(), "pid", os.Getpid())
	effect.log(log)

	counter := uses.New(store.index, log)
	note := func(ctx context.Context) error {
		return cmp.Or(
			counter.Begin(ctx),
			store.SetHardLimit(ctx, int64(c.StorageHardLimit)),
			store.SetMinimumFree(ctx, int64(c.StorageMinimumFreeSpace)),
		)
	}
	noteErr := note(ctx)
	if errors.Is(noteErr, index.ErrFull) {
		// The server answers requests without.
		log.Error("the limits of the storage, and since when uses are counted, could not be noted in the database for other commands: that is tried again until there is room", "error", noteErr)
	} else if noteErr != nil {
		return noteErr
	}
	peers, err := c.instances(ctx, store, log)
	if err != nil {
		return err
	}
	if err := advertise(ctx, store.index, &cacheOptions, log); err != nil {
		return err
	}
	if err := noteRestored(ctx, store.index, log); err != nil {
		return err
	}
	withdrawn := removal.NewWithdrawn(store.Storage, store.index, log)
	cache, err := openCache(store, cacheOptions, peers, counter, log)
	if err != nil {
		return err
	}
	options := httpapi.Options{
		Decompress: compression.NewReaderWithin, Decoders: decoderBudget(),
		TTLs: cacheOptions.TTLs, NegativeTTL: (*time.Duration)(c.NegativeTTL),
		AccelRedirect: c.XAccelRedirect,
		HideMetrics:   c.PublicMetrics == "no",
		AnswerCache:   max(int64(c.NarinfoCacheSize), 0),
		SigningKey:    key,
		Starting:      c.starting,

		TrustedProxies: proxies(c.TrustedProxies),
		Limits:         c.limits(),
		Version:        version(),
		Uses:           counter,
		Log:            log,
	}
	if cache != nil {
		defer running.Do("closing the cache", func() { err = errors.Join(err, cache.Close()) })
		options.Cached = cache
	}
	var server *httpapi.Server
	remover := c.keepLimit(store, peers, counter, func() int64 { return server.Answered() }, &options, log)
	passed, _ := options.Elsewhere.(*passing.Source)
	fetcher, err := c.fetchNars(store, peers, &options, log)
	if err != nil {
		return err
	}
	if fetcher != nil {
		defer fetcher.Close()
	}
	if c.ServeBucketNars == redirect {
		options.Presigned = store.bytes
	}
	options.Changes = store.index
	follower := c.follower(store, peers, fetcher, &options, log)
	dumps, err := c.dumps(store, follower, &options, log)
	if err != nil {
		return err
	}
	sums := checksums.New(store.index, log)
	options.Checksums = sums
	database := dbspace.New(store.index, nil, log)
	if noteErr != nil {
		database.Note = note
	}
	unstored := &unstoredCount{index: store.index, log: log}
	options.Health = healthParts{store, localDirectory(c.Storage), database, dumps, unstored, peers, withdrawn, ownership, remover, follower, fetcher}.list()
	server = httpapi.New(store, options)
	watcher, err := store.index.Watch(ctx)
	if err != nil {
		return err
	}
	followCtx, stopFollowing := context.WithCancel(ctx)
	defer func() {
		stopFollowing()
		running.Go("writing down uses", counter.Close)
		if fetcher != nil {
			running.Go("fetching nars", fetcher.Close)
		}
		running.Wait()
		err = errors.Join(err, watcher.Close())
	}()
	running.Go("watching the database", func() { server.Follow(followCtx, watcher) })
	running.Go("writing down uses", func() { counter.Run(followCtx) })
	running.Go("computing checksums", func() { sums.Run(followCtx, server.Forget) })
	server.Registry().MustRegister(database, damageMetric(store.index), unstored.metric())
	running.Go("counting items without nars", func() { unstored.Run(followCtx) })
	running.Go("watching the room for the database", func() { database.Run(followCtx) })
	if passed != nil {
		passed.Turns = server.Processors()
		server.Registry().MustRegister(passed.Unchecked)
	}
	if remover != nil {
		server.Registry().MustRegister(remover)
		running.Go("keeping the storage limit", func() { remover.Run(followCtx) })
	}
	if fetcher != nil {
		server.Registry().MustRegister(fetcher)
		running.Go("fetching nars", func() { fetcher.Run(followCtx) })
	}
	running.Go("watching the owner of the storage", func() { ownership.Run(followCtx) })
	running.Go("removing withdrawn items", func() { withdrawn.Run(followCtx) })
	running.Go("removing unfinished uploads", func() { store.RemoveUnfinished(followCtx) })
	if follower != nil {
		server.Registry().MustRegister(follower)
		running.Go("mirroring", func() { follower.Run(followCtx) })
	}
	server.Registry().MustRegister(dumps)
	if store.cache != nil {
		server.Registry().MustRegister(store.cache)
	}
	running.Go("making dumps", func() { dumps.Run(followCtx) })
	if cache != nil {
		server.Registry().MustRegister(cache)
		running.Go("caching nars", func() { cache.Run(followCtx, server.Forget) })
	}

	if c.control != nil {
		c.control.Attach(server.Health(), server.Registry())
		defer c.closeControl() // before what it shows is closed
	}
	if endStarting(); ctx.Err() != nil {
		return nil
	}
	for _, listener := range listeners {
		log.Info("listening", "address", listener.Addr().String())
	}
	notify(log, daemon.SdNotifyReady)
	context.AfterFunc(ctx, func() {
		log.Info("stopping")
		notify(log, daemon.SdNotifyStopping)
	})
	running.Do("answering requests", func() { err = server.Serve(ctx, listeners...) })
	if err != nil {
		return fmt.Errorf("serve: %w", err)
	}
	return nil
}

// limits are those of connections.
func (c *serverCommand) limits() engine.Limits {
	limits := engine.Limits{Unread: ownMemory() / unreadShare}
	if c.MaxConnections != nil {
		limits.Connections = int(*c.MaxConnections)
	}
	if c.MaxConnectionsPerAddress != nil {
		limits.PerAddress = int(*c.MaxConnectionsPerAddress)
	}
	return limits
}

// notify tells systemd, where it started the program and wants to know.
func notify(log *slog.Logger, state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		log.Warn("can't tell systemd", "state", state, "error", err)
	}
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

// writePidFile writes it beside and renames it: a supervisor that waits for the
// file must not find it empty.
func writePidFile(name string) error {
	if err := isPidFile(name); err != nil {
		return fmt.Errorf("--pid-file=%s: %w: name another file", name, err)
	}
	temporary, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".")
	if err != nil {
		return fmt.Errorf("--pid-file=%s: %w", name, err)
	}
	_, err = fmt.Fprintln(temporary, os.Getpid())
	err = errors.Join(err, temporary.Chmod(0o644), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), name)
	}
	if err != nil {
		_ = os.Remove(temporary.Name())
		return fmt.Errorf("--pid-file=%s: %w", name, err)
	}
	return nil
}

// isPidFile returns an error where another file would be replaced than that of an
// earlier run.
func isPidFile(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return nil // there is none, or writing it will fail as well
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	const longest = 32
	var text []byte
	if info.Size() <= longest {
		if text, err = os.ReadFile(name); err != nil {
			return err
		}
	}
	// After a loss of power, a file may be empty or have zero bytes.
	if info.Size() > longest || len(bytes.Trim(text, "0123456789 \n\x00")) > 0 {
		return errors.New("the file is there, and does not hold a process id")
	}
	return nil
}

// removePidFile removes the file while it is this process's.
func removePidFile(name string) {
	if isPidFile(name) != nil {
		return // reading a pipe would wait
	}
	if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(os.Getpid()) {
		_ = os.Remove(name)
	}
}
