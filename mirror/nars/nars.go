// Package nars downloads the nars that a mirror or a cache lacks, each once, however many
// clients request it.
//
// A download writes to a file in the byte store's spool, and resumes where it was cut, also
// after a restart. Clients read that file while it grows. The bytes are decompressed and
// compared with the NarHash as they arrive, and clients get the end of the file only after
// that: wrong bytes never make a complete answer, and are never stored.
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

	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
	"nar-herder/mirror/nars/queue"
	"nar-herder/mirror/nars/room"
	"nar-herder/mirror/nars/spool"
	"nar-herder/peer/passing"
	"nar-herder/storage"
	"nar-herder/storage/narcheck"
)

// Source provides nars, such as [nar-herder/peer/failover.Source].
type Source interface {
	// OpenFile opens an item's Nth file: length bytes from offset on, or all that follow
	// if length is negative. via is the client's Via header. The error is
	// [storage.ErrNotStored] if the source certainly doesn't have the file. size is that
	// of the whole file, -1 if unknown.
	OpenFile(ctx context.Context, item *storage.Item, n int, offset, length int64, via []string) (body io.ReadCloser, size int64, err error)
	// Resume opens the rest of a file, of which before has the bytes before the offset. The
	// error is [nar-herder/peer/failover.ErrDiffers] if the source has another file.
	Resume(ctx context.Context, item *storage.Item, n int, before io.ReaderAt, offset int64, via []string) (body io.ReadCloser, size int64, err error)
	// Locate returns the file's URL, and its checksum if the source sent one.
	Locate(ctx context.Context, item *storage.Item, n int, via []string) (string, [16]byte, error)
}

// Options of [New].
type Options struct {
	// All fetches every missing nar; otherwise nars are fetched on demand only. Those of
	// upstreams are fetched on demand in any case.
	All bool
	// OnlyUpstreams stores the nars of upstreams only, and passes others on.
	OnlyUpstreams bool
	// AtOnce is how many are fetched at a time, besides those on demand; 0 for 4.
	AtOnce int
	// Bandwidth limits all downloads that no client waits for, together, in bytes per
	// second; 0 for no limit.
	Bandwidth int64
	// Limit is the size in bytes on the disk below which downloads keep the storage;
	// negative for none.
	Limit int64
	// MakeRoom removes nars from the storage until so many bytes are free; nil if there are none
	// that may be removed for a client. Its error says why there is no room.
	MakeRoom func(ctx context.Context, bytes int64) error
	// Usage returns the current size of the storage; nil for [storage.Storage.Usage].
	Usage func(ctx context.Context) (int64, error)
	// Passing serves nars that can't be stored; nil makes one.
	Passing *passing.Source
	Decode  narcheck.Decoder
	// Received is called, by several goroutines at a time, for bytes that have arrived; may
	// be nil.
	Received func(bytes int64)
	// Spool is a directory for partial downloads, if the byte store has none of its own.
	Spool string
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil for the system's.
	Now func() time.Time
}

const (
	defaultAtOnce = 4
	// tail is how much of a file's end is withheld from clients until the whole file has
	// been compared with the NarHash. No compressed file ends its content more than a block
	// before its own end, so the rest can't be taken for a nar. A smaller file, as most
	// are, is withheld as a whole: a wrong one causes an error status and not a cut.
	tail = 64 << 10
	// farAhead is how far behind an offset a download may be so that a client waits for it:
	// about what arrives in the time of another request.
	farAhead = 16 << 20
)

// timing has the pauses, which tests shorten.
type timing struct {
	// retry is the pause before a failed item is tried again.
	retry pace.Backoff
	// absentRetry is that pause if the source doesn't have the item's nar.
	absentRetry time.Duration
	// pause is the pause of all downloads but those on demand after the source failed. An
	// item that failed with the source begins with its First.
	pause pace.Backoff
	// fullPause is the pause of all downloads after the disk was full.
	fullPause time.Duration
	// resumePause is the pause before a download resumes if its last attempt got nothing.
	// It doubles.
	resumePause time.Duration
	// passEvery is the time between two passes if the first skipped some nars.
	passEvery time.Duration
}

var usualTiming = timing{
	retry: pace.Backoff{First: time.Minute, Last: time.Hour}, absentRetry: time.Hour,
	pause:     pace.Backoff{First: time.Second, Last: 5 * time.Minute},
	fullPause: time.Minute, resumePause: 500 * time.Millisecond, passEvery: time.Hour,
}

// Fetcher downloads nars into a storage. OpenFile and Locate serve clients. It is a
// [prometheus.Collector] of its own metrics.
type Fetcher struct {
	storage *storage.Storage
	source  Source
	options Options
	log     *slog.Logger
	now     func() time.Time
	timing  timing
	metrics metrics
	limiter pace.Limiter // of all downloads that no client waits for
	queue   *queue.Queue
	spool   *spool.Spool
	room    *room.Room

	ctx  context.Context // of all downloads
	stop context.CancelFunc
	busy sync.WaitGroup // downloads

	// wake wakes Run.
	wake chan struct{}
	// missing is about how many items lack nars.
	missing atomic.Int64

	mu        sync.Mutex
	closed    bool
	downloads map[string]*download
	onDemand  int // downloads for clients
	// Until pausedUntil, the source has failed and nars are fetched on demand only. Until
	// fullUntil, nothing is stored.
	pausedUntil, fullUntil time.Time
	sourceFailures         int // in a row
	status                 Status
	logged                 logonce.Filter
	troubles               logonce.Filter // until a nar is fetched
}

// New makes a fetcher for a storage with a byte store. The caller closes it before the index
// and the byte store.
func New(s *storage.Storage, source Source, options Options) (*Fetcher, error) {
	if !s.HasBytes() {
		return nil, errors.New("nars can't be fetched without a storage to put them in")
	}
	f := &Fetcher{
		storage: s, source: source, options: options, log: options.Log, now: options.Now, timing: usualTiming, queue: queue.New(),
		wake: make(chan struct{}, 1), downloads: make(map[string]*download),
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
	f.room = room.New(room.Options{Storage: s, Limit: options.Limit, Usage: f.options.Usage, MakeRoom: options.MakeRoom, Log: f.log, Now: f.now})
	f.spool = spool.New(spool.Options{Storage: s, Fallback: options.Spool, InFlight: f.isInFlight, Reserve: f.room.Retain, Now: f.now})
	f.options.AtOnce = cmp.Or(options.AtOnce, defaultAtOnce)
	f.limiter.Rate = options.Bandwidth
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.makeMetrics()
	return f, nil
}

func (f *Fetcher) isInFlight(key string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.downloads[key] != nil
}

// Close stops all downloads and waits for their end. The spool keeps partial downloads.
func (f *Fetcher) Close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.stop()
	f.busy.Wait()
}

// maxOnDemand is how many downloads run for clients at a time, as each decompresses its nar:
// as many as nars are decompressed for clients. Further nars are passed on and not stored.
func maxOnDemand() int { return 16 * runtime.GOMAXPROCS(0) }
