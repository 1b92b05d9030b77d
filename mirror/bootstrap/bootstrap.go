// Package bootstrap makes the database of a new mirror from what its source publishes: a
// copy of its index, or its dump.
package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
	"nar-herder/mirror/health"
	"nar-herder/mirror/sourcedump"
	"nar-herder/narinfo/signing"
	"nar-herder/peer"
	"nar-herder/peer/download"
)

// Bootstrap makes the database of a mirror. It is made by [New].
type Bootstrap struct {
	// FirstPause is the pause after a failure, which doubles with each in a row up to
	// lastPause.
	FirstPause time.Duration
	// Keys are authorized to sign the narinfos; nil for any key.
	Keys *signing.Keys

	database string
	source   *peer.Peer
	log      *slog.Logger

	mu      sync.Mutex
	current health.Status

	// These are used by Run alone.
	logged logonce.Filter
	dumps  sourcedump.Loader
}

const (
	firstPause = time.Second
	lastPause  = 2 * time.Minute
	// notReadyPause is for a source that will have a dump soon.
	notReadyPause = 5 * time.Second
)

// New prepares to make the named database, which doesn't exist yet.
func New(database string, source *peer.Peer, log *slog.Logger) *Bootstrap {
	b := &Bootstrap{FirstPause: firstPause, database: database, source: source, log: log,
		current: health.Status{Source: source.String(), State: health.Syncing, LagSeconds: -1}}
	b.dumps = sourcedump.Loader{Source: source, Downloads: sourcedump.Downloads(database), Log: log, Now: time.Now, Progress: b.doing}
	return b
}

// Status returns the current state.
func (b *Bootstrap) Status() health.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}

func (b *Bootstrap) doing(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current.State, b.current.Doing, b.current.Error = health.Syncing, what, ""
}

// Suffixes of the prefix of downloads.
const (
	indexSuffix    = ".index" // the source's index
	unfinishedName = ".new"   // the new index
)

func (b *Bootstrap) unfinished() string { return b.dumps.Downloads + unfinishedName }

// RemoveFiles removes the files that an unfinished bootstrap left, except for a dump.
func RemoveFiles(downloads string) error {
	// Freeing a gigabyte takes a while: leave it to the closing of the file.
	if file, err := os.Open(downloads + indexSuffix); err == nil {
		defer func() { go file.Close() }()
	}
	err := download.Discard(downloads + indexSuffix)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if removeErr := os.Remove(downloads + unfinishedName + suffix); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}

// Run makes the database. It retries until it succeeds, the context ends, or another
// process has made the database. Its error is that of the context.
func (b *Bootstrap) Run(ctx context.Context) error {
	backoff := pace.Backoff{First: b.FirstPause, Last: lastPause}
	for failures := 1; ; failures++ {
		if _, err := os.Stat(b.database); err == nil {
			// Perhaps an import has made it: the mirror merges the source into that.
			if err := RemoveFiles(b.dumps.Downloads); err != nil {
				b.log.Warn("can't remove downloaded files", "error", err)
			}
			return nil
		}
		err := b.Try(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		pause := backoff.Jittered(failures)
		if errors.Is(err, download.ErrNotReady) {
			pause, failures = pace.Jitter(min(notReadyPause, 5*b.FirstPause)), 1
		}
		b.mu.Lock()
		b.current.Doing, b.current.Error = "", health.Public(err, b.database)
		b.current.Failures++
		if b.current.State = health.Failing; errors.Is(err, download.ErrNotReady) {
			b.current.State = health.Syncing
		}
		b.mu.Unlock()
		b.logged.Log(b.log, slog.LevelWarn, time.Now(), "can't start from the mirrored instance yet", "source", b.source.String(), "error", err)
		if pace.Sleep(ctx, pause) != nil {
			return ctx.Err()
		}
	}
}

// Try makes one attempt.
func (b *Bootstrap) Try(ctx context.Context) error {
	b.logged.Log(b.log, slog.LevelInfo, time.Now(), "starting from the mirrored instance", "source", b.source.String())
	if b.dumps.IsBegun() {
		return b.fromDump(ctx) // an earlier attempt preferred it
	}
	if b.dumps.HasRejected() {
		// The index was rejected before. This downloads nothing while the dump is the same.
		if err := b.fromDump(ctx); !errors.Is(err, download.ErrNone) {
			return err
		}
	}
	name := b.dumps.Downloads + indexSuffix
	file, builtErr, err := b.downloadIndex(ctx, name)
	switch {
	case errors.Is(err, errSlowLine):
		b.log.Info("the line is slow: downloading the dump, which is smaller, and building the index from it")
	case errors.Is(err, download.ErrNone):
		return b.fromDump(ctx)
	case err != nil:
		return err
	case !file.Verified:
		// The dump can be checked without a digest.
	case builtErr == nil:
		return b.place()
	case ctx.Err() != nil || !errors.Is(builtErr, errBadIndex):
		return builtErr
	default:
		b.log.Info("can't use the index that the mirrored instance publishes: starting from its dump", "error", builtErr)
	}
	return errors.Join(b.fromDump(ctx), download.Discard(name))
}

// downloadIndex downloads the source's index to a file and builds the new index while it
// arrives. builtErr is the error of the build. The new index may be used only if the file
// is complete and verified.
func (b *Bootstrap) downloadIndex(ctx context.Context, name string) (file *download.File, builtErr, err error) {
	b.doing("downloading the index")
	slow, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	progress := sourcedump.Progress("downloading the index", time.Now, b.doing)
	isSlow := b.watchRate(ctx)
	arriving := newGrowing(name)
	built := make(chan error, 1)
	var downloaded atomic.Bool
	go func() {
		now := time.Now()
		build := &build{log: b.log, source: b.source.String(), keys: b.Keys, now: now, fallback: now, doing: func(what string) {
			if downloaded.Load() {
				b.doing(what)
			}
		}}
		err := build.fromIndex(slow, b.unfinished(), arriving, growingFile)
		if err != nil && !errors.Is(err, errBadIndex) {
			stop(err) // the rest of the download is useless
		}
		built <- err
	}()
	file, err = download.Fetch(slow, b.source, peer.IndexPath, name, false, func(done, total int64) {
		progress(done, total)
		arriving.grow(done, total)
		if isSlow(done, total) {
			stop(errSlowLine)
		}
	})
	if err != nil {
		arriving.end(0, err)
		stop(err)
	} else {
		downloaded.Store(true)
		b.doing("building the index")
		arriving.end(file.Size, nil)
	}
	builtErr = <-built
	if builtErr == nil && (err != nil || !file.Verified) {
		// Make room for the dump.
		err = errors.Join(err, os.Remove(b.unfinished()))
	}
	return file, builtErr, err
}

var errSlowLine = errors.New("the line is slow")

const (
	// watchFor is how long a download runs before its rate is judged.
	watchFor = 5 * time.Second
	// mergeRate is about how many bytes of a compressed dump are built into an index per
	// second.
	mergeRate = 8 << 20
)

// watchRate returns a function that reports once whether downloading the compressed dump
// and building the index from it would be faster than downloading the rest of the index.
func (b *Bootstrap) watchRate(ctx context.Context) func(done, total int64) bool {
	var begun time.Time
	var first int64
	judged := false
	return func(done, total int64) bool {
		now := time.Now()
		if begun.IsZero() {
			begun, first = now, done
		}
		took := now.Sub(begun)
		if judged || took < watchFor {
			return false
		}
		judged = true
		_, size, err := download.Look(ctx, b.source, peer.DumpPath, true)
		return err == nil && isSlow(float64(done-first)/took.Seconds(), total-done, size)
	}
}

// isSlow compares the time for the rest of an index with that for a compressed dump, at a
// rate in bytes per second.
func isSlow(rate float64, left, dump int64) bool {
	return dump > 0 && float64(left)/rate > float64(dump)/rate+float64(dump)/mergeRate
}

// place renames the new index to the database, unless another process, such as an import,
// has made one meanwhile: the mirror merges the source into that. It removes other files.
func (b *Bootstrap) place() error {
	name := b.unfinished()
	// Imports may run as other users of the group, one of which may have made the file.
	if err := os.Chmod(name, 0o664); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	err := os.Link(name, b.database)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		err = disk.RenameNew(name, b.database) // a file system without links
	}
	if errors.Is(err, fs.ErrExist) {
		b.log.Info("another process has made the database: the mirrored instance will be merged into it", "database", b.database)
	} else if err != nil {
		return fmt.Errorf("put the database in place: %w", err)
	} else if err := disk.SyncDirectory(b.database); err != nil {
		return err
	}
	return RemoveFiles(b.dumps.Downloads)
}

// fromDump makes the database from the source's dump.
func (b *Bootstrap) fromDump(ctx context.Context) (err error) {
	if err := b.dumps.Rejected(ctx); err != nil {
		return err
	}
	b.logged.Log(b.log, slog.LevelInfo, time.Now(), "building the index from the dump of the mirrored instance", "source", b.source.String())
	d, err := b.dumps.Fetch(ctx)
	if err != nil {
		return err
	}
	if err := b.dumps.Close(ctx, d, b.buildDump(ctx, d)); err != nil {
		return fmt.Errorf("start from the dump of %s: %w", b.source, err)
	}
	return b.place()
}

// buildDump builds the new index from a dump.
func (b *Bootstrap) buildDump(ctx context.Context, d *sourcedump.Dump) error {
	at, _, err := b.dumps.Behind(ctx, d)
	if err != nil {
		return err
	}
	now := time.Now()
	build := &build{log: b.log, source: b.source.String(), keys: b.Keys, doing: b.doing, now: now, fallback: now}
	if !d.Modified.IsZero() && d.Modified.Before(now) {
		build.fallback = d.Modified
	}
	if build.count, err = d.Count(ctx); err != nil {
		return err
	}
	return build.fromDump(ctx, b.unfinished(), d, at)
}
