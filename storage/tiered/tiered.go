// Package tiered caches the nars of a remote store in a local directory: run-server's
// --storage-cache.
//
// Only Open reads from the cache; all other calls go to the remote store. A copy is of one
// content of a name, identified by size, time, [bytestore.Info.Tag] and
// [bytestore.Info.Sum]. It is compared with the remote store at most once a minute, and
// served unverified if that doesn't answer.
//
// An entry takes about 270 bytes of memory with an ETag of S3. The directory contains
//
//	lock               locked by the process that uses the cache
//	filling/RANDOM     copies that are being fetched
//	KE/KEY-SIZE-…      copies; KEY is a hash of the name, and the rest identifies the
//	                   content, so that a restart needs the file names only
//
// Other files in it are ignored.
package tiered

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/internal/logonce"
	"nar-herder/storage/bytestore"
)

const (
	// fresh is how long a copy is served without revalidation, and so how long one may
	// be served after another process has replaced or removed the nar.
	fresh = time.Minute
	// checkTimeout is how long a client with a cached copy waits for the store.
	checkTimeout = 5 * time.Second
	// downFor is how long copies aren't revalidated after the store didn't answer.
	downFor = 10 * time.Second
	// quietFor is how long nothing is fetched after the cache's disk has failed.
	quietFor = time.Minute
	// noRoomFor is the same after all copies were in use.
	noRoomFor = time.Second
	// touchEvery is the precision of the last use in a file's time.
	touchEvery = time.Hour
	// stalled is the progress timeout of a fetch.
	stalled = time.Minute
	// largest limits a copy to 1/largest of the cache, so that one nar doesn't evict all
	// others.
	largest = 4
	// closeWait is how long Close waits for fetches, as one may hang.
	closeWait = time.Second
)

// Options are the options of [New].
type Options struct {
	// Directory is for the copies. New creates it if necessary.
	Directory string
	// MaxSize limits the disk space of the files in bytes, including those that are being
	// written, but not the directories.
	MaxSize int64
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// Tiered is a store with a cache in front of it.
type Tiered struct {
	bytestore.Store // remote
	directory       string
	max             int64
	log             *slog.Logger
	now             func() time.Time
	began           time.Time
	lock            *os.File
	mostFills       int
	// stalled, checkTimeout and writeAt differ from the constants and File.WriteAt only
	// in tests.
	stalled, checkTimeout time.Duration
	writeAt               func(file *os.File, p []byte, offset int64) (int, error)

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	scanned chan struct{} // closed after the scan of existing copies

	// making is held by makeRoom and create. Lock it before mu.
	making sync.Mutex

	mu      sync.Mutex
	entries map[key]*entry
	idle    order // the entries without users
	taken   int64 // disk space, including dropped files that are still open
	fills   int
	ready   bool // scanned, and not closed
	down    bool // the store didn't answer
	// downUntil is when copies are revalidated again, and quietUntil when nars are
	// fetched again.
	downUntil, quietUntil time.Time

	troubles logonce.Filter

	metrics metrics
}

// New returns a cache in front of a store. The caller closes the store after the cache. New
// returns before it has scanned the directory; until then, all reads go to the store.
func New(store bytestore.Store, options Options) (*Tiered, error) {
	if options.MaxSize <= 0 {
		return nil, fmt.Errorf("cache %s: size %d must be positive", options.Directory, options.MaxSize)
	}
	directory, err := filepath.Abs(options.Directory)
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", options.Directory, err)
	}
	t := &Tiered{
		Store: store, directory: directory, max: options.MaxSize, log: options.Log, now: options.Now,
		mostFills: 16 * runtime.GOMAXPROCS(0), stalled: stalled, checkTimeout: checkTimeout, writeAt: (*os.File).WriteAt,
		scanned: make(chan struct{}), entries: make(map[key]*entry),
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	if t.now == nil {
		t.now = time.Now
	}
	t.began = t.now()
	t.idle.init()
	t.makeMetrics()
	if err := disk.MkdirAll(t.filling(), 0o755); err != nil {
		return nil, fmt.Errorf("cache %s: create it: %w", directory, err)
	}
	if err := t.takeLock(); err != nil {
		return nil, err
	}
	if err := t.removeUnfinished(); err != nil {
		t.lock.Close()
		return nil, fmt.Errorf("cache %s: remove unfinished copies of an earlier process: %w", directory, err)
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.running.Go(t.scan)
	return t, nil
}

// takeLock locks the directory: another process would remove files and use space that this
// one doesn't know about.
func (t *Tiered) takeLock() error {
	file, err := disk.OpenFile(filepath.Join(t.directory, "lock"), os.O_RDONLY|unix.O_NOFOLLOW, 0o644, disk.GroupWrites)
	if err != nil {
		return fmt.Errorf("cache %s: lock it: %w", t.directory, err)
	}
	switch err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
	case unix.ENOSYS, unix.ENOLCK, unix.EOPNOTSUPP, unix.EINVAL:
		t.log.Warn("the file system of the cache has no locks: make sure that no other server uses it", "directory", t.directory)
	case unix.EWOULDBLOCK:
		file.Close()
		return fmt.Errorf("cache %s is in use by another server: name another directory for this one", t.directory)
	default:
		file.Close()
		return fmt.Errorf("cache %s: lock it: %w", t.directory, err)
	}
	t.lock = file
	return nil
}

// Close cancels all fetches and unlocks the directory. Open readers remain usable; later
// reads go to the store.
func (t *Tiered) Close() error {
	t.mu.Lock()
	t.ready = false
	t.mu.Unlock()
	t.stop()
	done := make(chan struct{})
	go func() {
		t.running.Wait()
		close(done)
	}()
	timer := time.NewTimer(closeWait)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		t.log.Warn("a canceled read of the storage didn't return in time", "storage", t.Store.String())
	}
	return t.lock.Close()
}

// Flush implements [bytestore.Store]. The bytes were added without Stage, so it invalidates
// the copy.
func (t *Tiered) Flush(ctx context.Context, name string) error {
	defer t.Invalidate(name)
	return t.Store.Flush(ctx, name)
}

// Remove implements [bytestore.Store]. It drops the copy before, and after, in case a fetch
// has begun during the call.
func (t *Tiered) Remove(ctx context.Context, name string) error {
	t.dropName(name)
	defer t.dropName(name)
	return t.Store.Remove(ctx, name)
}

// Stage implements [bytestore.Store].
func (t *Tiered) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	return t.stage(name)(t.Store.Stage(ctx, name, from, size))
}

// StageFile implements [bytestore.Store].
func (t *Tiered) StageFile(ctx context.Context, name string, file *os.File, size int64) (bytestore.Staged, error) {
	return t.stage(name)(t.Store.StageFile(ctx, name, file, size))
}

// stage wraps a Staged so that its commit drops the copy.
func (t *Tiered) stage(name string) func(bytestore.Staged, error) (bytestore.Staged, error) {
	return func(inner bytestore.Staged, err error) (bytestore.Staged, error) {
		if err != nil {
			return nil, err
		}
		return &staged{Staged: inner, t: t, name: name}, nil
	}
}

type staged struct {
	bytestore.Staged
	t    *Tiered
	name string
}

// Commit implements [bytestore.Staged].
func (s *staged) Commit(ctx context.Context) error {
	s.t.dropName(s.name)
	defer s.t.dropName(s.name) // if a fetch has begun during the call
	return s.Staged.Commit(ctx)
}

// CommitNew implements [bytestore.Staged].
func (s *staged) CommitNew(ctx context.Context) error {
	s.t.dropName(s.name)
	defer s.t.dropName(s.name)
	return s.Staged.CommitNew(ctx)
}

// trouble handles an error of the cache's disk: nothing is fetched for a while.
func (t *Tiered) trouble(err error) {
	t.mu.Lock()
	now := t.now()
	t.quietUntil = now.Add(quietFor)
	t.mu.Unlock()
	t.metrics.troubles.Add(1)
	if t.troubles.IsDue("", now) { // whatever fails
		t.log.Warn("the cache of the storage has failed: nothing is fetched into it for a minute", "directory", t.directory, "error", err)
	}
}
