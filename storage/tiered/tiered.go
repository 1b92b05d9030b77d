// Package tiered puts a directory of this machine in front of a store that is far
// away, as a cache of what is read: run-server's --storage-cache.
//
// Only Open is answered out of the directory; all else goes to the store behind.
// A copy belongs to one content of a name, which size, time, [bytestore.Info.Tag] and
// [bytestore.Info.Sum] tell from others. It is served without asking for a minute after it was compared
// with the store behind, and when that can't be asked.
//
// An entry takes about 270 bytes of memory, with a tag of S3. The directory has
//
//	lock               held by the one process that uses it
//	filling/RANDOM     copies that are being fetched
//	KE/KEY-SIZE-…      copies, by a hash of the name, and the content: a restart
//	                   finds all again by their names alone
//
// and whatever else is there is left alone.
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
	// fresh is for how long a copy is served without asking, and so for how long
	// one may be that another process has replaced or removed.
	fresh = time.Minute
	// checkTimeout is how long a client waits for the store behind where there is
	// a copy.
	checkTimeout = 5 * time.Second
	// downFor is for how long a store that could not be asked isn't asked again.
	downFor = 10 * time.Second
	// quietFor is for how long nothing is fetched after this disk has failed.
	quietFor = time.Minute
	// noRoomFor is the same after all of the cache was in use.
	noRoomFor = time.Second
	// touchEvery is how often the last use of a copy is noted on the disk.
	touchEvery = time.Hour
	// stalled is how long a fetch may get nothing.
	stalled = time.Minute
	// largest is the part of the directory that one copy may take, one of so many:
	// one nar shall not drive out all others.
	largest = 4
	// closeWait is how long Close waits for fetches, one of which may hang.
	closeWait = time.Second
)

// Options of [New].
type Options struct {
	// Directory is for the copies. It is made if need be.
	Directory string
	// MaxSize is what files in it may take of the disk, in bytes, with those being
	// written; not what the directories take.
	MaxSize int64
	// Log takes what operators should know; nil drops it.
	Log *slog.Logger
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

// Tiered is the store behind, with Open answered out of the directory.
type Tiered struct {
	bytestore.Store // behind
	directory       string
	max             int64
	log             *slog.Logger
	now             func() time.Time
	began           time.Time
	lock            *os.File
	mostFills       int
	// stalled and checkTimeout are the constants, and writeAt that of files, but in
	// tests.
	stalled, checkTimeout time.Duration
	writeAt               func(file *os.File, p []byte, offset int64) (int, error)

	ctx     context.Context
	stop    context.CancelFunc
	running sync.WaitGroup
	scanned chan struct{} // closed when what was there is known

	// making is held by who makes room. It comes before mu.
	making sync.Mutex

	mu      sync.Mutex
	entries map[key]*entry
	idle    order // the entries that nobody uses
	taken   int64 // of the disk, with what is dropped and still open
	fills   int
	ready   bool // scanned, and not closed
	down    bool // the store behind could not be asked
	// downUntil and quietUntil are when it is asked again, and something fetched again.
	downUntil, quietUntil time.Time

	troubles logonce.Filter

	metrics metrics
}

// New puts a cache in front of a store, which stays the caller's to close, after
// this. It returns at once: until it has found out what is in the directory, all
// is read from the store.
func New(behind bytestore.Store, options Options) (*Tiered, error) {
	if options.MaxSize <= 0 {
		return nil, fmt.Errorf("cache %s: a size of %d bytes holds nothing: name a larger one", options.Directory, options.MaxSize)
	}
	directory, err := filepath.Abs(options.Directory)
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", options.Directory, err)
	}
	t := &Tiered{
		Store: behind, directory: directory, max: options.MaxSize, log: options.Log, now: options.Now,
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
	if err := t.removeLeftovers(); err != nil {
		t.lock.Close()
		return nil, fmt.Errorf("cache %s: remove what an earlier process was fetching: %w", directory, err)
	}
	t.ctx, t.stop = context.WithCancel(context.Background())
	t.running.Go(t.scan)
	return t, nil
}

// takeLock makes sure that no other process uses the directory: each would count
// and remove files without the other's knowing.
func (t *Tiered) takeLock() error {
	file, err := disk.OpenFile(filepath.Join(t.directory, "lock"), os.O_RDONLY|unix.O_NOFOLLOW, 0o644, disk.GroupWrites)
	if err != nil {
		return fmt.Errorf("cache %s: lock it: %w", t.directory, err)
	}
	switch err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
	case unix.ENOSYS, unix.ENOLCK, unix.EOPNOTSUPP, unix.EINVAL:
		t.log.Warn("the file system of the cache has no locks: make sure that no other server uses it", "cache", t.directory)
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

// Close ends all fetches, and lets another process have the directory. Readers
// that are open stay good; from now on, all is read from the store behind.
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
		t.log.Warn("a store does not let go of what was being fetched from it", "storage", t.Store.String())
	}
	return t.lock.Close()
}

// Flush implements [bytestore.Store], by the store behind. As the bytes have come
// by another way, a copy here is compared before it is served again.
func (t *Tiered) Flush(ctx context.Context, name string) error {
	defer t.Invalidate(name)
	return t.Store.Flush(ctx, name)
}

// Remove implements [bytestore.Store]. The copy goes first, and again what was
// begun to be fetched meanwhile.
func (t *Tiered) Remove(ctx context.Context, name string) error {
	t.dropName(name)
	defer t.dropName(name)
	return t.Store.Remove(ctx, name)
}

// Stage implements [bytestore.Store], by the store behind.
func (t *Tiered) Stage(ctx context.Context, name string, from io.Reader, size int64) (bytestore.Staged, error) {
	return t.stage(name)(t.Store.Stage(ctx, name, from, size))
}

// StageFile implements [bytestore.Store], where the store behind does.
func (t *Tiered) StageFile(ctx context.Context, name string, file *os.File, size int64) (bytestore.Staged, error) {
	return t.stage(name)(t.Store.StageFile(ctx, name, file, size))
}

// stage has the copy go when another content is shown.
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
	defer s.t.dropName(s.name) // what was begun to be fetched meanwhile
	return s.Staged.Commit(ctx)
}

// CommitNew implements [bytestore.Staged].
func (s *staged) CommitNew(ctx context.Context) error {
	s.t.dropName(s.name)
	defer s.t.dropName(s.name)
	return s.Staged.CommitNew(ctx)
}

// trouble is told of what fails on this disk. Nothing is fetched for a while then.
func (t *Tiered) trouble(err error) {
	t.mu.Lock()
	now := t.now()
	t.quietUntil = now.Add(quietFor)
	t.mu.Unlock()
	t.metrics.troubles.Add(1)
	if t.troubles.IsDue("", now) { // whatever fails
		t.log.Warn("the cache of the storage can't be used as it should; what is not in it is read from the storage itself, and this is tried again", "cache", t.directory, "error", err)
	}
}
