package mirror

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/internal/pace"
	"nar-herder/peer"
)

// Beginning makes the database of a mirror that has none yet. It is made by
// [NewBeginning].
type Beginning struct {
	database string
	source   *peer.Peer
	log      *slog.Logger
	// firstPause is the constant but in tests.
	firstPause time.Duration

	mu      sync.Mutex
	current Status

	// These are Run's.
	failed, started, merging reminder
	held                     held
}

// NewBeginning is for a database of that name, of which there is none yet.
func NewBeginning(database string, source *peer.Peer, log *slog.Logger) *Beginning {
	return &Beginning{database: database, source: source, log: log, firstPause: firstPause,
		current: Status{Source: source.String(), State: Syncing, LagSeconds: -1}}
}

// Status is how far it is.
func (b *Beginning) Status() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.current
}

func (b *Beginning) doing(what string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.current.State, b.current.Doing, b.current.Error = Syncing, what, ""
}

// downloadsSuffix is what the names of a database's downloads have behind its own.
const downloadsSuffix = ".mirror"

// Downloads is what the names of a database's downloads begin with.
func Downloads(database string) string { return database + downloadsSuffix }

// What is put behind that.
const (
	indexDownload = ".index" // the source's index
	unfinished    = ".new"   // an index that is being made of the source's dump
)

// removeBeginnings removes what is left of ways to begin that were not gone to the
// end.
func removeBeginnings(downloads string) error {
	// To free a gigabyte takes a while. That is done when the file is closed.
	if file, err := os.Open(downloads + indexDownload); err == nil {
		defer func() { go file.Close() }()
	}
	err := peer.Discard(downloads + indexDownload)
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if removeErr := os.Remove(downloads + unfinished + suffix); !errors.Is(removeErr, fs.ErrNotExist) {
			err = errors.Join(err, removeErr)
		}
	}
	return err
}

// Run returns when the database is there: the source's index as it publishes it,
// or made of its dump. It tries for as long as that takes; the error is the
// context's, or about this machine's database.
func (b *Beginning) Run(ctx context.Context) error {
	for failures := 0; ; failures++ {
		if _, err := os.Stat(b.database); err == nil {
			// An import has made it, say: then the source is merged into that.
			if err := removeBeginnings(Downloads(b.database)); err != nil {
				b.log.Warn("can't remove what was downloaded", "error", err)
			}
			return nil
		}
		err := b.try(ctx)
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		pause := min(lastPause, b.firstPause<<min(failures, 10))
		if errors.Is(err, peer.ErrNotReady) {
			pause, failures = min(notReadyPause, 5*b.firstPause), 0
		}
		b.mu.Lock()
		b.current.Doing, b.current.Error = "", publicError(err, Downloads(b.database))
		b.current.Failures++
		if b.current.State = Failing; errors.Is(err, peer.ErrNotReady) {
			b.current.State = Syncing
		}
		b.mu.Unlock()
		b.failed.log(b.log, slog.LevelWarn, time.Now(), "can't start from the mirrored instance yet", "source", b.source.String(), "error", err)
		if pace.Sleep(ctx, pause/2+rand.N(pause)) != nil {
			return ctx.Err()
		}
	}
}

func (b *Beginning) try(ctx context.Context) error {
	name := Downloads(b.database) + indexDownload
	b.started.log(b.log, slog.LevelInfo, time.Now(), "starting from the mirrored instance", "source", b.source.String())
	if peer.IsBegun(peer.DumpPath, Downloads(b.database)+".dump") {
		return b.fromDump(ctx) // an earlier try has found that better
	}
	if b.held.err != nil {
		// The index was of no use. This asks for no bytes as long as there is the same dump.
		if err := b.fromDump(ctx); !errors.Is(err, peer.ErrNoDump) {
			return err
		}
	}
	file, builtErr, err := b.downloadIndex(ctx, name)
	if errors.Is(err, errSlowLine) {
		b.log.Info("the line is slow, so the dump is downloaded, which is smaller, and the index made of it")
		return errors.Join(b.fromDump(ctx), peer.Discard(name))
	}
	switch {
	case errors.Is(err, peer.ErrNoDump):
		return b.fromDump(ctx)
	case err != nil:
		return err
	case !file.Verified:
		// Then it can be checked better in the other form.
		return errors.Join(b.fromDump(ctx), peer.Discard(name))
	}
	if builtErr != nil {
		if ctx.Err() != nil || !errors.Is(builtErr, errBadIndex) {
			return builtErr
		}
		b.log.Info("the index that the mirrored instance publishes can't be used, so the mirror is made of its dump", "error", builtErr)
		return errors.Join(b.fromDump(ctx), peer.Discard(name))
	}
	if err := b.place(Downloads(b.database) + unfinished); err != nil {
		return err
	}
	return removeBeginnings(Downloads(b.database))
}

// downloadIndex downloads the source's index to a name, and makes an index of it meanwhile,
// which is to be used only if the file has come whole, and is verified. builtErr is of that
// index.
func (b *Beginning) downloadIndex(ctx context.Context, name string) (file *peer.Downloaded, builtErr, err error) {
	b.doing("downloading the index")
	slow, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	meter := progressOf("downloading the index", time.Now, b.doing)
	pace := b.pace(ctx)
	coming := newGrowing(name)
	built := make(chan error, 1)
	var downloaded atomic.Bool
	go func() {
		building := b.build()
		building.doing = func(what string) {
			if downloaded.Load() {
				b.doing(what)
			}
		}
		err := building.ofIndex(slow, Downloads(b.database)+unfinished, coming, growingFile)
		if err != nil && !errors.Is(err, errBadIndex) {
			stop(err) // more bytes are of no use
		}
		built <- err
	}()
	file, err = b.source.Download(slow, peer.IndexPath, name, false, func(done, total int64) {
		meter(done, total)
		coming.grow(done, total)
		if pace(done, total) {
			stop(errSlowLine)
		}
	})
	if err != nil {
		coming.end(0, err)
		stop(err)
	} else {
		downloaded.Store(true)
		b.doing("making the index")
		coming.end(file.Size, nil)
	}
	builtErr = <-built
	if builtErr == nil && (err != nil || !file.Verified) {
		// What was made isn't used. The room may be needed for the dump.
		err = errors.Join(err, os.Remove(Downloads(b.database)+unfinished))
	}
	return file, builtErr, err
}

// build begins to make the index.
func (b *Beginning) build() *building {
	now := time.Now()
	return &building{log: b.log, source: b.source.String(), doing: b.doing, now: now, fallback: now}
}

var errSlowLine = errors.New("the line is slow")

const (
	// paceAfter is how long a download is watched before it is judged.
	paceAfter = 5 * time.Second
	// mergeRate is about how many bytes of a compressed dump are made an index in a
	// second.
	mergeRate = 8 << 20
)

// pace says whether it would be faster to download the compressed dump, and to make
// the index of that, than to go on with the index.
func (b *Beginning) pace(ctx context.Context) func(done, total int64) bool {
	var begun time.Time
	var first int64
	judged := false
	return func(done, total int64) bool {
		now := time.Now()
		if begun.IsZero() {
			begun, first = now, done
		}
		took := now.Sub(begun)
		if judged || took < paceAfter {
			return false
		}
		judged = true
		_, size, err := b.source.Look(ctx, peer.DumpPath, true)
		return err == nil && isSlow(float64(done-first)/took.Seconds(), total-done, size)
	}
}

// isSlow compares, in seconds, what is left of an index with a compressed dump, at a
// rate in bytes a second.
func isSlow(rate float64, left, dump int64) bool {
	return dump > 0 && float64(left)/rate > float64(dump)/rate+float64(dump)/mergeRate
}

// place gives a finished file the database's name, unless another process, such as
// an import, has made one meanwhile: then the source is merged into that.
func (b *Beginning) place(name string) error {
	// Imports run as other users of the group, one of whom may have made it.
	if err := os.Chmod(name, 0o664); err != nil && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	err := os.Link(name, b.database)
	if errors.Is(err, errors.ErrUnsupported) || errors.Is(err, fs.ErrPermission) {
		err = disk.RenameNew(name, b.database) // a file system without links
	}
	if errors.Is(err, fs.ErrExist) {
		b.log.Info("there is a database by now, into which the mirrored instance will be merged", "database", b.database)
		return nil
	}
	if err != nil {
		return fmt.Errorf("put the database in place: %w", err)
	}
	return disk.SyncDirectory(b.database)
}

// fromDump makes the database of the source's dump in the original's schema.
func (b *Beginning) fromDump(ctx context.Context) (err error) {
	m := New(Options{Source: b.source, Downloads: Downloads(b.database), Log: b.log})
	m.status.told = func(s Status) { b.doing(cmp.Or(s.Doing, "finishing")) }
	m.dumps.held = b.held
	defer func() { b.held = m.dumps.held }()
	// Nothing of what is here could be lost, so that no dump is refused for that.
	if err := m.stillHeld(ctx); err != nil {
		return err
	}
	b.merging.log(b.log, slog.LevelInfo, time.Now(), "making the index of the dump of the mirrored instance", "source", b.source.String())
	db, err := m.fetchDump(ctx)
	if err != nil {
		return err
	}
	if err := m.closeDump(ctx, db, m.build(ctx, Downloads(b.database)+unfinished, db)); err != nil {
		return fmt.Errorf("start from the dump of %s: %w", b.source, err)
	}
	if err := b.place(Downloads(b.database) + unfinished); err != nil {
		return err
	}
	return removeBeginnings(Downloads(b.database))
}
