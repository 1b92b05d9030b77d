// Package removal keeps a storage below its limit: it removes nars that match a criterion.
// If in doubt, as when another instance is down, the nar is kept.
//
// Its sub-packages are the other parts of removal. Only the owner of a storage deletes from
// it, see [storage.Storage.MayDelete]:
//   - this package, nars that match a criterion;
//   - removal/eviction, nars that can be fetched again;
//   - removal/named, items that an administrator names;
//   - removal/withdrawal, withdrawn items after their grace period.
//
// Items that removal/pins knows are kept, unless an administrator forces their removal;
// removal/dependence keeps instances from removing a nar because of each other.
package removal

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/internal/logonce"
	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/removal/criteria"
	"nar-herder/removal/deletion"
	"nar-herder/removal/dependence"
	"nar-herder/removal/pins"
	"nar-herder/storage"
	"nar-herder/storage/importer/replacing"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/probe"
)

// Options of [New].
type Options struct {
	// Limit is the usage of the disk, in bytes, below which the storage is kept; negative
	// for none.
	Limit int64
	// MinimumFree is the number of bytes to keep free on the file system of the storage;
	// negative for no minimum.
	MinimumFree int64
	// Criteria select the nars that may be removed: those that match any of them.
	Criteria []criteria.Criterion
	// Peer returns the instance at a URL.
	Peer func(*url.URL) *peer.Peer
	// Settle is how long this instance must have stated that it depends on another before it
	// removes nars because that one has them; 0 for ten minutes.
	Settle time.Duration
	// Uses knows which nars were requested since uses were written to the index; nil for
	// none.
	Uses interface {
		IsPending(hash narinfo.PathHash) bool
	}
	// Evictor removes nars that can be fetched again, before others are removed by criteria; nil
	// for none.
	Evictor Evictor
	// Answered is the number of requests answered so far: removals slow down while there are
	// many. It may be nil.
	Answered func() int64
	// Decode decompresses nars that an import failed to replace, to identify them; nil leaves
	// them unserved.
	Decode narcheck.Decoder
	// Interval is how often the storage is compared with its limit; 0 for a minute.
	Interval time.Duration
	// Log may be nil.
	Log *slog.Logger
	// Now is the clock; nil for the system's.
	Now func() time.Time
}

// Evictor removes nars that can be fetched again, such as [nar-herder/removal/eviction.Evictor].
type Evictor interface {
	// Evict removes nars until so many bytes are free, or none is left.
	Evict(ctx context.Context, bytes int64) (storage.Freed, error)
	// Evicted returns how many bytes were freed so far, including for clients.
	Evicted() int64
}

const (
	defaultInterval = time.Minute
	// scanEvery is how often the usage of the storage is measured again, unless that takes
	// too large a share of the time.
	scanEvery = time.Hour
	// remoteScanEvery is the same for a remote byte store.
	remoteScanEvery = 24 * time.Hour
	// Scans take at most one part of scanShare of the time, or of aboveShare while the
	// storage seems to be above its limit.
	scanShare  = 50
	aboveShare = 10
	// fullPause is how long to wait before the next pass over all items, when nothing more
	// could be removed.
	fullPause = 15 * time.Minute

	// pageItems is how many items are read at a time, and chunkItems how many of them one
	// request to another instance names. Several requests run at a time, so that the other
	// instance's disk and this one's are both busy.
	pageItems    = 4 * chunkItems
	chunkItems   = peer.MostAsked
	chunksAtOnce = 2

	// busyRate is the number of requests a second above which clients take precedence: a
	// removal then rests paceFactor times as long as it has worked, at most mostPause at a
	// time.
	busyRate   = 200
	paceFactor = 5
	mostPause  = time.Minute
)

// Remover keeps a storage below its limit. It is a [prometheus.Collector] of its
// own metrics.
type Remover struct {
	storage *storage.Storage
	index   *index.Index
	options Options
	log     *slog.Logger
	now     func() time.Time
	limit   atomic.Int64
	peers   map[string]*peer.Peer
	metrics metrics
	latest  deletion.Latest

	// The position of the pass over all items.
	passAt      time.Time
	age         int
	from, until time.Time
	cursor      int64
	resumeAt    time.Time
	passLimit   int64         // the limit that resumeAt applies to
	removed     bool          // this pass has removed something
	undeletable error         // the first file that the last pass found undeletable
	skipped     string        // why criteria were skipped in this pass; "" if none was
	plan        func(Planned) // receives what would be removed; nil to remove it

	dependence *dependence.Tracker
	planning   sync.Mutex // held while plan is called

	pinned       *pins.Set // nil if it must be read
	countedSince time.Time
	aheadSince   time.Time
	sawAhead     bool // this pass has found such times

	scannedAt time.Time
	scanTook  time.Duration // how long the last scan took
	// counted is the usage that the last scan found, less what was removed since. Unlike
	// the running estimate, it can't count bytes twice that were there before their row.
	counted int64

	space    space // used by Round only, except its minimum
	wasBelow bool  // below the minimum of free space, as logged

	named, loggedUnnamed bool // the storage has a name; that it has none was logged

	reasons  logonce.Filter // reasons for staying above the limit
	failures logonce.Filter // of rounds
	// These remember logged failures of parts of a round.
	unlisted, unchecked, unanswered logonce.Filter

	mu      sync.Mutex
	usage   int64
	pending index.WithdrawnUsage // of usage
	hard    int64                // the hard limit; negative for none
	warning string
	// spaceReason is why no more is removed to reach the minimum of free space.
	spaceReason string
	stuck       bool // files can't be deleted
}

// New makes a remover.
func New(s *storage.Storage, options Options) *Remover {
	r := &Remover{storage: s, index: s.Index(), options: options, log: options.Log, now: options.Now, peers: make(map[string]*peer.Peer)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	var urls []string
	for _, u := range criteria.Instances(options.Criteria) {
		r.peers[u.String()] = options.Peer(u)
		urls = append(urls, u.String())
	}
	r.dependence = dependence.New(s.Instance(), urls, options.Settle, r.now)
	r.limit.Store(options.Limit)
	r.hard = -1
	r.space.minimum = options.MinimumFree
	r.makeMetrics()
	return r
}

// SetLimit changes the limit, from the next round on.
func (r *Remover) SetLimit(limit int64) { r.limit.Store(limit) }

// Run keeps the limit until the context ends.
func (r *Remover) Run(ctx context.Context) {
	var asking sync.WaitGroup
	asking.Go(func() { r.dependence.Run(ctx, r.introduce) })
	defer asking.Wait()
	ticker := time.NewTicker(cmp.Or(r.options.Interval, defaultInterval))
	defer ticker.Stop()
	for {
		if err := r.Round(ctx); err == nil {
			r.failures.Over(r.log, "the storage is compared with its limit again")
		} else if ctx.Err() == nil {
			r.failures.Log(r.log, slog.LevelError, r.now(), "can't keep the storage below its limit for now", "error", err)
			r.warn("can't compare the storage with its limit: see the log")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// Latest returns the items that lost their nars last, the newest first.
func (r *Remover) Latest() []deletion.Evicted { return r.latest.Items() }

// ReliesOn returns the statement of the instances that this one depends on.
func (r *Remover) ReliesOn() peer.Statement { return r.dependence.Statement() }

// introduce asks a peer to introduce itself.
func (r *Remover) introduce(ctx context.Context, url string) (peer.Introduction, error) {
	return r.peers[url].Introduce(ctx)
}

// nameStorage gives the storage a name, if this instance owns it. Other instances ask for
// the name, and answering them must not write anything.
func (r *Remover) nameStorage(ctx context.Context) {
	if r.storage.MayDelete(ctx) != nil {
		return // an unmounted one must get no name; the health page reports the owner
	}
	_, err := r.storage.Identity(ctx)
	if r.named = err == nil; err != nil && ctx.Err() == nil && !r.loggedUnnamed {
		r.loggedUnnamed = true
		r.log.Warn("can't give the storage a name yet, so other instances can't depend on its nars: will retry", "error", err)
	} else if err == nil && r.loggedUnnamed {
		r.log.Info("the storage has a name now")
	}
}

// Round compares the storage with its limit once, and removes as many nars as it must and
// may.
func (r *Remover) Round(ctx context.Context) error {
	if !r.named {
		r.nameStorage(ctx)
	}
	// Do this first, because these files are useless.
	dropped, err := deletion.DeletePending(ctx, r.storage)
	if dropped.Size > 0 {
		r.log.Info("deleted files that a killed process had not deleted", "bytes", dropped.Usage)
	}
	var left error // about files of removed items
	if errors.Is(err, storage.ErrNotDeleted) && ctx.Err() == nil {
		left = err
		r.setStuck(left)
	} else if err != nil && ctx.Err() == nil {
		r.unlisted.Log(r.log, slog.LevelWarn, r.now(), "can't list the files of removed items: will retry", "error", err)
	} else if err == nil {
		r.unlisted.Over(r.log, "the files of removed items are listed again")
	}
	if r.options.Decode != nil {
		if err := replacing.Resolve(ctx, r.storage, r.options.Decode); err == nil {
			r.unchecked.Over(r.log, "nars that an import failed to replace can be checked again")
		} else if ctx.Err() == nil {
			r.unchecked.Log(r.log, slog.LevelWarn, r.now(), "nars that an import failed to replace can't be checked, and are not served: will retry", "error", err)
		}
	}
	g, reason, err := r.measure(ctx)
	if err != nil {
		return err
	}
	fails := errors.Is(left, deletion.ErrDeletionFails)
	if g.left() <= 0 || fails {
		r.resumeAt = time.Time{}
		r.setStuck(left)
		if fails && g.left() > 0 {
			reason = notDeleted
		}
		r.report(g, reason)
		return nil
	}
	isResting := r.now().Before(r.resumeAt) && g.limit == r.passLimit
	if isResting && r.options.Evictor == nil {
		return nil // as the last round found, nothing may be removed
	}
	// If files can't be deleted, rows must stay. On a full disk, they can.
	if err := probe.Writing(ctx, r.storage); err != nil && !disk.IsFull(err) {
		return err
	}
	if err := r.storage.MayDelete(ctx); err != nil {
		return err
	}
	stuck, err := r.evict(ctx, &g)
	if err != nil {
		return err
	}
	left = cmp.Or(left, stuck)
	if g.left() <= 0 {
		r.resumeAt = time.Time{}
		r.setStuck(left)
		r.report(g, reason)
		return r.lookAtSpace(ctx)
	}
	if isResting {
		return nil
	}
	r.passLimit = g.limit
	begun, before := r.now(), r.metrics.counts()
	kept, err := r.free(ctx, &g)
	after := r.metrics.counts()
	r.counted -= after.bytes - before.bytes
	if after.removed > before.removed {
		r.log.Info("made room in the storage", "nars", after.removed-before.removed,
			"bytes", after.bytes-before.bytes, "duration", r.now().Sub(begun).Round(time.Millisecond))
	}
	if after.withdrawn > before.withdrawn {
		r.noteWithdrawn(ctx, after.withdrawn-before.withdrawn, after.withdrawnBytes-before.withdrawnBytes)
	}
	if errors.Is(err, storage.ErrNotDeleted) && ctx.Err() == nil {
		// Files of removed rows are still there: measure again.
		r.scannedAt = time.Time{}
		r.setStuck(err)
		r.report(g, notDeleted)
		return nil
	}
	if err != nil {
		return err
	}
	r.setStuck(cmp.Or(left, r.undeletable))
	r.report(g, cmp.Or(kept, reason))
	return r.lookAtSpace(ctx) // before other programs take the freed space
}

// evict removes nars that can be fetched again. stuck is the error about files that can't be
// deleted; others may be removed.
func (r *Remover) evict(ctx context.Context, g *goal) (stuck, err error) {
	if r.options.Evictor == nil {
		return nil, nil
	}
	begun := r.now()
	freed, err := r.options.Evictor.Evict(ctx, g.left())
	g.freed(freed.Usage)
	r.counted -= freed.Usage
	if freed.Items > 0 {
		r.log.Info("evicted nars that can be fetched again from upstreams", "items", freed.Items, "bytes", freed.Usage, "duration", r.now().Sub(begun).Round(time.Millisecond))
	}
	if errors.Is(err, storage.ErrNotDeleted) && ctx.Err() == nil {
		return err, nil
	}
	return nil, err
}

// notDeleted is the reason for removing nothing more: items would lose their nars without
// making room.
const notDeleted = "files can't be deleted: see the log for which, and why"

// setStuck records that files can't be deleted; nil if they can. Only changes are logged.
func (r *Remover) setStuck(err error) {
	r.mu.Lock()
	was := r.stuck
	r.stuck = err != nil
	r.mu.Unlock()
	if err != nil && !was {
		r.log.Error("can't delete files: retrying, and removing others as long as that makes room", "error", err)
	} else if err == nil && was {
		r.log.Info("files can be deleted again")
	}
}

// goal is by how many bytes the storage has to shrink.
type goal struct {
	limit   int64 // the limit that excess refers to; negative for none
	excess  int64 // bytes above the limit
	lacking int64 // bytes below the minimum of free space
}

func (g *goal) left() int64 { return max(g.excess, g.lacking) }

// freed records bytes that were removed, or will be.
func (g *goal) freed(bytes int64) { g.excess, g.lacking = g.excess-bytes, g.lacking-bytes }

// setLimit changes the limit in the middle of a pass.
func (g *goal) setLimit(limit int64) {
	switch {
	case limit < 0:
		g.excess = 0
	case g.limit >= 0: // else the next round compares the storage with it
		g.excess += g.limit - limit
	}
	g.limit = limit
}

// report reports how far a goal was missed, and why, in the log and on the health page.
func (r *Remover) report(g goal, reason string) {
	r.mu.Lock()
	r.warning, r.spaceReason = "", ""
	if g.excess > 0 {
		r.warning = fmt.Sprintf("the storage is %d bytes above its limit of %d: %s", g.excess, r.limit.Load(), reason)
	}
	if g.lacking > 0 || g.excess <= 0 {
		r.spaceReason = reason
	}
	r.mu.Unlock()
	if reason == "" {
		r.reasons.Over(r.log, "the storage is within its limits again")
		return
	}
	if !r.reasons.IsDue(reason, r.now()) {
		return
	}
	level := slog.LevelError
	if reason == dependence.Unsettled { // as after each start
		level = slog.LevelInfo
	}
	if g.excess > 0 {
		r.log.Log(context.Background(), level, "the storage is above its limit for now", "limit", r.limit.Load(), "above", g.excess, "reason", reason)
	}
	if g.lacking > 0 || g.excess <= 0 {
		r.log.Log(context.Background(), level, "less than the minimum is free on the file system of the storage, for now", "free", r.space.last.free, "minimum", r.space.minimum, "reason", reason)
	}
}

// warn sets the warning on the health page.
func (r *Remover) warn(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warning = text
}

// measure returns by how many bytes the storage is above its limit and below the minimum of
// free space, apart from withdrawn items; and why no more is removed for the latter.
func (r *Remover) measure(ctx context.Context) (g goal, reason string, err error) {
	g.limit = r.limit.Load()
	usage, scanned, err := r.storage.Usage(ctx)
	if err != nil {
		return goal{}, "", err
	}
	// For the first round, a scan of an earlier process is sufficient.
	due := max(scanEvery, scanShare*r.scanTook)
	above := g.limit >= 0 && usage > g.limit
	switch {
	case r.storage.IsRemote():
		// Only this instance writes there, and files take no more than their length, so the
		// running count is as good as a scan, which needs a request for each thousand
		// names.
		if due, r.counted = max(remoteScanEvery, due), usage; r.scannedAt.IsZero() {
			r.scannedAt = stamp.Past(scanned, r.now())
		}
	case above:
		due = max(r.interval(), aboveShare*r.scanTook)
	}
	if r.scannedAt.IsZero() && (scanned.IsZero() || g.limit >= 0) || !r.scannedAt.IsZero() && r.now().Sub(r.scannedAt) >= due {
		begun := r.now()
		if err := r.storage.Scan(ctx); err != nil {
			return goal{}, "", err
		}
		r.scannedAt = r.now()
		r.scanTook = r.scannedAt.Sub(begun)
		if usage, _, err = r.storage.Usage(ctx); err != nil {
			return goal{}, "", err
		}
		r.counted = usage
	}
	pending, err := r.index.WithdrawnStored(ctx)
	if err != nil {
		return goal{}, "", err
	}
	hard, err := r.storage.HardLimit(ctx)
	if err != nil {
		return goal{}, "", err
	}
	r.mu.Lock()
	r.usage, r.pending, r.hard = usage, pending, hard
	r.mu.Unlock()
	if g.limit >= 0 {
		// If in doubt, the smaller of the two counts: the next scan resolves it.
		g.excess = min(usage, r.counted) - pending.Size - g.limit
	}
	if err := r.lookAtSpace(ctx); err != nil {
		return goal{}, "", err
	}
	g.lacking, reason = r.space.lacking()
	return g, reason, nil
}

func (r *Remover) interval() time.Duration { return cmp.Or(r.options.Interval, defaultInterval) }
