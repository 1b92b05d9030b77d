// Package scrub reads everything that a running server has stored once per interval, the longest
// unverified first, and repairs what is damaged.
//
// The times of verification in the index are its only progress, so a restart resumes. It reads one
// file at a time, at twice the rate that the interval takes.
package scrub

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/check"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

const (
	// leastRate is the least rate of reading, in bytes per second.
	leastRate = 1 << 20
	// haste is how many times faster than necessary a pass is.
	haste = 2
	// pageItems is how many items a pass has in memory.
	pageItems = 100
	// flushEvery is how long verified items wait to be recorded, and flushItems how many.
	flushEvery = 5 * time.Second
	flushItems = 500
	// startAfter is the rest after the start of the server, if the interval isn't short.
	startAfter = time.Minute
	// leastWait and mostWait bound the time between two passes: a hundredth of the interval.
	leastWait, mostWait = time.Second, 10 * time.Minute
	// A pass ends if more than maxFindings, and more than one item in findingShare, are wrong:
	// the cause is probably not the nars, but a file system, the memory or the processor.
	maxFindings  = 100
	findingShare = 100
	// maxMissing is how many nars may be missing.
	maxMissing = 20
	// These are counted over countOver, or the interval if that is shorter: when everything was
	// verified once, each of the passes has few items.
	countOver = 24 * time.Hour
)

var (
	// retryItem is the pause before an item that was not repaired is tried again.
	retryItem = pace.Backoff{First: 10 * time.Minute, Last: 24 * time.Hour}
	// retryPass is the pause after a pass that failed as a whole.
	retryPass = pace.Backoff{First: time.Minute, Last: time.Hour}
)

// Options of [New].
type Options struct {
	// Interval is how often everything is verified.
	Interval time.Duration
	Decode   narcheck.Decoder
	// Sources are asked for nars and narinfos that are damaged. They include all instances from
	// which the server gets nars for clients.
	Sources []check.Source
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil for the system's.
	Now func() time.Time
}

// Scrubber verifies and repairs one storage. It is a [prometheus.Collector].
type Scrubber struct {
	storage  *storage.Storage
	index    *index.Index
	checker  *check.Checker
	repairer *check.Repairer
	options  Options
	turns    sync.Locker // nil for none
	log      *slog.Logger
	now      func() time.Time
	logged   logonce.Filter

	// least and textPause are leastRate and the usual textPause, except in tests.
	least     int64
	textPause time.Duration

	// These are used by Run alone.
	limiter *pace.Limiter
	pending []verified // to be recorded
	flushed time.Time
	retries map[narinfo.PathHash]retry
	textsAt time.Time // the last check of all texts
	// These count findings since a time, and for longer while passes end with errStorage.
	findings, missing int64
	counted           time.Time
	summed            time.Time // the last update of the sums in the metrics
	speed             speed
	slow              string // the warning if the speed is too low

	metrics metrics
	state   atomic.Pointer[state]
	current atomic.Pointer[storage.Item] // nil for none
}

// retry is an item that was not repaired.
type retry struct {
	at       time.Time
	failures int
	// unreadable means that the nar can't be verified, which is not a fault.
	unreadable bool
}

// state is for the health.
type state struct {
	unrepaired, texts, lost int64
	failure                 error // of the last pass
	slow                    string
}

// New makes a scrubber. A storage without a byte store has only texts to check.
func New(s *storage.Storage, options Options) *Scrubber {
	if options.Log == nil {
		options.Log = slog.New(slog.DiscardHandler)
	}
	if options.Now == nil {
		options.Now = time.Now
	}
	scrubber := &Scrubber{
		storage: s, index: s.Index(), checker: check.New(s), options: options, log: options.Log, now: options.Now,
		least: leastRate, textPause: textPause, limiter: new(pace.Limiter), retries: make(map[narinfo.PathHash]retry), metrics: newMetrics(options.Interval),
	}
	scrubber.repairer = scrubber.checker.Repairer(check.RepairOptions{
		Decode: scrubber.decode, Sources: options.Sources, Rate: leastRate, Withhold: true,
		Hide: func(*storage.Item) bool { return true },
	})
	scrubber.state.Store(new(state))
	return scrubber
}

// TakeTurns makes the scrubber lock turns while it decompresses, so that requests get theirs. Call
// it before Run.
func (s *Scrubber) TakeTurns(turns sync.Locker) { s.turns = turns }

// Run scrubs until the context ends.
func (s *Scrubber) Run(ctx context.Context) {
	failures := 0
	for wait := min(startAfter, rest(s.options.Interval)); pace.Sleep(ctx, wait) == nil; {
		err := s.Pass(ctx)
		if ctx.Err() != nil {
			return
		}
		wait = rest(s.options.Interval)
		if err == nil {
			failures = 0
			continue
		}
		failures++
		wait = retryPass.After(failures)
	}
}

// rest returns how long to wait after a pass that has left nothing to do.
func rest(interval time.Duration) time.Duration {
	return min(max(interval/100, leastWait), mostWait)
}

// errStorage wraps an error that ends a pass.
var errStorage = errors.New("the scrub has paused")

// Pass verifies everything that is due. It returns nil when nothing is left to do now, and else
// the error that ended it.
func (s *Scrubber) Pass(ctx context.Context) error {
	ctx = bytestore.Direct(ctx)
	// While the last pass has ended with errStorage, the next finding ends this one too.
	now := s.now()
	if since := now.Sub(s.counted); !errors.Is(s.state.Load().failure, errStorage) && (since < 0 || since >= min(countOver, s.options.Interval)) {
		s.findings, s.missing, s.counted = 0, 0, now
	}
	err := s.pass(ctx)
	if ended := s.end(ctx); err == nil {
		err = ended
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	hadFailed := s.state.Load().failure != nil
	s.update(ctx, func(now *state) { now.failure, now.slow = err, s.slow })
	if err != nil {
		s.logged.Log(s.log, slog.LevelError, s.now(), "the scrub has stopped, and will retry", "error", err)
	} else if s.logged.Forget(); hadFailed {
		s.log.Info("the scrub works again")
	}
	return err
}

func (s *Scrubber) pass(ctx context.Context) error {
	begun := s.now()
	bounded, err := s.index.BoundVerified(ctx, begun)
	if err != nil {
		return err
	}
	if bounded > 0 {
		s.log.Warn("times of verification were in the future, as after the clock was wrong: these items count as unverified", "items", bounded)
	}
	if err := s.texts(ctx); err != nil {
		return err
	}
	if !s.storage.HasBytes() {
		return nil
	}
	if err := s.lost(ctx); err != nil {
		return err
	}
	if err := s.nars(ctx); err != nil {
		return err
	}
	// Those that were due and are not found any more were removed.
	maps.DeleteFunc(s.retries, func(_ narinfo.PathHash, r retry) bool { return !r.at.After(begun) })
	return nil
}

// nars verifies the items that are due.
func (s *Scrubber) nars(ctx context.Context) error {
	s.speed = speed{}
	before := s.now().Add(-s.options.Interval)
	var cursor index.VerificationCursor
	for more := true; more; {
		totals, err := s.index.Totals(ctx)
		if err != nil {
			return err
		}
		s.setRate(totals.StoredSize)
		var page []*index.Item
		if page, more, err = s.index.VerifiedBefore(ctx, before, &cursor, pageItems); err != nil {
			return err
		}
		for _, row := range page {
			if s.isWaiting(row.Hash) {
				continue
			}
			if err := s.item(ctx, row, totals); err != nil {
				return err
			}
		}
		s.note(totals)
		s.update(ctx, func(now *state) { now.slow = s.slow })
	}
	s.slow = ""
	return nil
}

// setRate derives the rate from the length of all stored nars.
func (s *Scrubber) setRate(stored int64) {
	rate := max(s.least, int64(min(haste*float64(stored)/s.options.Interval.Seconds(), 1<<62)))
	if s.limiter.Rate != rate {
		s.limiter = &pace.Limiter{Rate: rate}
	}
	s.metrics.rate.Store(rate)
}

// item verifies one item.
func (s *Scrubber) item(ctx context.Context, row *index.Item, totals index.Totals) error {
	item, err := storage.NewItem(row)
	if err != nil {
		return nil // damage, which the check of the texts finds
	}
	// Don't let verified items wait for a long read.
	if item.StoredBytes()/int64(flushEvery/time.Second) > s.limiter.Rate {
		if err := s.flush(ctx); err != nil {
			return err
		}
	}
	s.current.Store(item)
	defer s.current.Store(nil)
	began := s.now()
	wrong, unreadable := false, false
	unread := 0 // files, such as those that the owner of the storage has removed
	for n, name := range item.FileNames() {
		if name != "" && item.HasStored(n) {
			unread++
		}
	}
	options := check.VerifyOptions{Decode: s.decode, Looked: func(bytes int64) {
		unread--
		s.metrics.read.Add(float64(bytes))
		s.speed.bytes += bytes
	}}
	for finding, err := range s.checker.VerifyItem(ctx, row.Hash, s.limiter, options) {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil && finding.Name == "":
			return fmt.Errorf("%w: the storage can't be read: %w", errStorage, err)
		case errors.Is(err, narcheck.ErrUnreadable):
			unreadable = true
			s.logged.Log(s.log, slog.LevelWarn, s.now(), "can't verify a stored nar: its length is right", "file", finding.Name, "error", err)
			continue
		}
		done, err := s.found(ctx, finding, err, totals.Items)
		if err != nil {
			return err
		}
		if finding.Kind == check.Missing || finding.Kind == check.WrongSize {
			unread--
		}
		wrong = wrong || !done
	}
	switch {
	case wrong || unreadable || unread > 0:
		s.failed(row.Hash, !wrong)
		return nil
	default:
		delete(s.retries, row.Hash)
	}
	s.pending = append(s.pending, verified{row, began})
	if len(s.pending) >= flushItems || s.now().Sub(s.flushed) >= flushEvery || s.now().Before(s.flushed) {
		return s.flush(ctx)
	}
	return nil
}

// Verifying returns the item that is being verified, or nil.
func (s *Scrubber) Verifying() *storage.Item { return s.current.Load() }

// isWaiting reports whether an item was not repaired and is not due yet.
func (s *Scrubber) isWaiting(hash narinfo.PathHash) bool {
	r, ok := s.retries[hash]
	return ok && s.now().Before(r.at) && !s.now().Before(r.at.Add(-retryItem.Last))
}

// failed records that an item was not repaired or verified.
func (s *Scrubber) failed(hash narinfo.PathHash, unreadable bool) {
	r := s.retries[hash]
	r.failures++
	r.unreadable = unreadable
	r.at = s.now().Add(retryItem.After(r.failures))
	if unreadable {
		r.at = s.now().Add(retryItem.Last)
	}
	s.retries[hash] = r
}

// end records the last verified items, and updates the state, also when the context has ended.
func (s *Scrubber) end(ctx context.Context) error {
	err := s.flush(ctx)
	s.summed = time.Time{}
	return err
}

// sumEvery is how often the sums in the metrics are updated during a pass.
const sumEvery = time.Minute

// update updates the state and the metrics.
func (s *Scrubber) update(ctx context.Context, change func(*state)) {
	now := *s.state.Load()
	now.unrepaired = 0
	for _, r := range s.retries {
		if !r.unreadable {
			now.unrepaired++
		}
	}
	if lost, err := s.index.CountLost(ctx); err == nil {
		now.lost = lost
	}
	change(&now)
	s.state.Store(&now)
	s.metrics.unrepaired.Store(now.unrepaired + now.texts + now.lost)
	if since := s.now().Sub(s.summed); since >= 0 && since < sumEvery {
		return
	}
	if sums, err := s.index.Verification(ctx); err == nil {
		s.metrics.sums.Store(&sums)
		s.summed = s.now()
	}
}

var _ prometheus.Collector = (*Scrubber)(nil)
