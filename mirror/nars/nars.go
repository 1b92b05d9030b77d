// Package nars fetches the nars that a mirror lacks from where they are, each
// once, however many ask for it.
//
// A nar comes in a flight: one request to the source at a time, into a file of
// the byte store's spool, which goes on where it was cut, also after a restart.
// Clients read that file while it grows. What comes is decompressed and compared
// with the NarHash on its way, and its end is shown to nobody before that: so
// wrong bytes never make a whole answer, and are never stored.
package nars

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"

	"nar-herder/narinfo"
	"nar-herder/peer/passing"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Source is where nars come from, such as [nar-herder/peer.Peers].
type Source interface {
	// OpenFile opens an item's Nth file: length bytes from offset on, or all
	// that follow when length is negative. via is what the request has come
	// through. The error is [storage.ErrNotStored] when it certainly does not
	// have it. size is that of the whole file, -1 when it is not known.
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error)
	// Locate returns the file's URL, and its checksum if the source says it.
	Locate(ctx context.Context, item *storage.Item, n int, via []string) (string, [16]byte, error)
}

// Options of [New].
type Options struct {
	// All has each nar fetched that is missing; else only those are that
	// clients ask for.
	All bool
	// AtOnce is how many are fetched at a time, apart from those that clients
	// ask for; 0 for 4.
	AtOnce int
	// Bandwidth bounds what is fetched while no client waits for it, in bytes a
	// second for all together; 0 for no limit.
	Bandwidth int64
	// Limit is what the storage is kept below, in bytes on the disk; negative
	// for none. With what is fetched it stays below that.
	Limit int64
	// Usage is what the storage takes now, in bytes; nil for
	// [storage.Storage.Usage].
	Usage func(ctx context.Context) (int64, error)
	// Passing is the source for what clients get without its being stored; nil makes one.
	Passing *passing.Source
	// Decode reads compressed nars.
	Decode storage.Decoder
	// Spool is a directory for what is not whole yet, where the byte store has
	// none of its own.
	Spool string
	// Log is for operators; nil drops it.
	Log *slog.Logger
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

const (
	defaultAtOnce = 4
	// tail is how much of a file's end is shown only once all of it was
	// compared with the NarHash. No compression has the end of its content more
	// than a block before the end of the file, so that nobody can take what
	// comes before for a nar. Of a smaller file, as most are, nothing is shown
	// before: then a wrong one gets a proper error in place of a cut.
	tail = 64 << 10
	// farAhead is from where on a client does not wait for a flight to get
	// there: about what comes in the time that another request takes.
	farAhead = 16 << 20
	// mostWanted is how many announced items are remembered.
	mostWanted = 10_000
	// mostRetries is how many failures are. Those that are forgotten, or were
	// announced and are, are found again by a pass.
	mostRetries = 10_000
	// pageItems is how many items a pass has in memory.
	pageItems = 200
	// mostUnfit is how many items in a row a pass finds too large for the room
	// that is left before it gives up.
	mostUnfit = 20
)

// timing are the times that matter, which tests shorten.
type timing struct {
	// firstRetry is when an item that failed is tried again; that doubles up to
	// lastRetry. absentRetry is when one is that the source does not have.
	firstRetry, lastRetry, absentRetry time.Duration
	// firstPause and lastPause are how long nothing is fetched after the source
	// has failed, for several in a row.
	firstPause, lastPause time.Duration
	// fullPause is how long nothing is after there was no room.
	fullPause time.Duration
	// resumePause is before a cut flight goes on without having got anything
	// from the last attempt; it doubles.
	resumePause time.Duration
	// passEvery is how soon a pass follows another that has left something out.
	passEvery time.Duration
	// remindEvery is how often the log tells the same trouble.
	remindEvery time.Duration
	// staleAfter is when a spool file that is not gone on with is removed.
	staleAfter time.Duration
}

var usualTiming = timing{
	firstRetry: time.Minute, lastRetry: time.Hour, absentRetry: time.Hour,
	firstPause: time.Second, lastPause: 5 * time.Minute,
	fullPause: time.Minute, resumePause: 500 * time.Millisecond,
	passEvery: time.Hour, remindEvery: time.Hour, staleAfter: 24 * time.Hour,
}

// Fetcher fetches nars into a storage. Its OpenFile and Locate answer clients. It
// is a [prometheus.Collector] of its own metrics.
type Fetcher struct {
	storage *storage.Storage
	index   *index.Index
	source  Source
	options Options
	log     *slog.Logger
	now     func() time.Time
	timing  timing
	metrics metrics
	line    line

	ctx  context.Context // of all flights
	stop context.CancelFunc
	busy sync.WaitGroup // flights

	// wake has something in it when there may be something to do.
	wake chan struct{}
	// missing is about how many items lack nars.
	missing atomic.Int64
	// coming is how many bytes all flights are going to take.
	coming atomic.Int64

	mu      sync.Mutex
	closed  bool
	flights map[string]*flight
	// retained is the room for what is left in the spool, by the keys of flights.
	retained map[string]*room
	asked    int // flights that were begun for clients
	// wanted are announced and asked for, the latest at the end.
	wanted   []narinfo.PathHash
	isWanted map[narinfo.PathHash]struct{}
	retries  *lru.LRU[narinfo.PathHash, retry]
	// nextRetry is when the first of them is due; zero for none.
	nextRetry time.Time
	// lost says that a failure was forgotten, and overflowed that something
	// announced was: only a pass finds them again.
	lost, overflowed bool
	// pausedUntil is until when nothing is fetched but what clients ask for, as
	// the source has failed, and fullUntil until when nothing is stored.
	pausedUntil, fullUntil time.Time
	sourceFailures         int // in a row
	// unfits is how many files in a row did not fit, unfitUsage what the storage
	// took then, negative when all has fitted, and unfitSpare what could be written
	// above the minimum of free space.
	unfits                 int
	unfitUsage, unfitSpare int64
	status                 Status
	told                   map[string]time.Time // what the log has told, and when
}

// New makes a fetcher for a storage that has bytes. The caller closes it before
// the index and the byte store.
func New(s *storage.Storage, source Source, options Options) (*Fetcher, error) {
	if !s.HasBytes() {
		return nil, errors.New("nars can't be fetched without a storage to put them in")
	}
	f := &Fetcher{
		storage: s, index: s.Index(), source: source, options: options, log: options.Log, now: options.Now, timing: usualTiming,
		wake: make(chan struct{}, 1), flights: make(map[string]*flight), retained: make(map[string]*room), isWanted: make(map[narinfo.PathHash]struct{}),
		told: make(map[string]time.Time), unfitUsage: -1,
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if f.now == nil {
		f.now = time.Now
	}
	if f.options.Usage == nil {
		f.options.Usage = func(ctx context.Context) (int64, error) {
			usage, _, err := s.Usage(ctx)
			return usage, err
		}
	}
	if options.Passing == nil {
		f.options.Passing = passing.New(source, 0)
	}
	f.options.AtOnce = cmp.Or(options.AtOnce, defaultAtOnce)
	f.line.Rate = options.Bandwidth
	var err error
	if f.retries, err = lru.NewLRU[narinfo.PathHash, retry](mostRetries, nil); err != nil {
		return nil, err
	}
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.makeMetrics()
	return f, nil
}

// Close ends all flights, and waits until they have let go of the storage. What
// has come so far stays in the spool.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.busy.Wait()
}

// mostAsked is how many flights are begun for clients at a time: as many as nars
// are decompressed for clients, as each decompresses its nar. What is asked for
// beyond them is passed on without being stored.
func mostAsked() int { return 16 * runtime.GOMAXPROCS(0) }
