// Package removal decides what may go, and when: nars that other instances have
// stored, or that nobody needs, while the storage is above its limit; items that
// an administrator names; and items that were withdrawn, once no client can hold
// their narinfos. What a pin keeps stays.
//
// A nar goes only when a criterion surely holds for it now. What can't be known,
// since another instance is down or says something else, is not sure.
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
	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/removal/deletion"
	"nar-herder/storage"
	"nar-herder/storage/importer"
	"nar-herder/storage/index"
)

// Options of [New].
type Options struct {
	// Limit is what the storage is kept below, in bytes on the disk; negative
	// for none.
	Limit int64
	// MinimumFree is how many bytes are kept free on the file system of the storage;
	// negative for no minimum.
	MinimumFree int64
	// Criteria say which nars may go: those for which any of them holds.
	Criteria []Criterion
	// Peer returns the instance at a URL.
	Peer func(*url.URL) *peer.Peer
	// Settle is for how long this instance must have stated that it relies on another
	// before it removes nars because that one has them; 0 for ten minutes.
	Settle time.Duration
	// Uses knows what was asked for and is not written down yet; nil for
	// nothing.
	Uses interface {
		IsPending(hash narinfo.PathHash) bool
	}
	// Answered is how many requests were answered so far, so that removals make
	// way where there are many; nil for none.
	Answered func() int64
	// Decode decompresses nars that an import failed to replace, to find out which
	// they are; nil leaves them unserved.
	Decode storage.Decoder
	// Interval is how often the storage is compared with its limit; 0 for a
	// minute.
	Interval time.Duration
	// Log is for operators; nil drops it.
	Log *slog.Logger
	// Now is the clock; nil is the system's.
	Now func() time.Time
}

const (
	defaultInterval = time.Minute
	// surveyEvery is how often the storage is counted anew, if that takes a
	// small part of the time.
	surveyEvery = time.Hour
	// distantSurveyEvery is the same for one that is far away.
	distantSurveyEvery = 24 * time.Hour
	// surveyShare bounds that part, and aboveShare while the storage seems to be
	// above its limit.
	surveyShare = 50
	aboveShare  = 10
	// fullPause is how long to wait before all items are looked at again, when
	// none of them could go.
	fullPause = 15 * time.Minute

	// pageItems is how many items are looked at together, and chunkItems how
	// many of them are asked for in one question. Several questions are under
	// way at a time, so that the other instance's disk and this one's are both
	// busy.
	pageItems    = 4 * chunkItems
	chunkItems   = peer.MostAsked
	chunksAtOnce = 2

	// busyRate is from how many requests a second on clients have the right of
	// way: then a removal rests paceFactor times as long as it has worked, for
	// mostPause at a time at the most.
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

	// The pass over all items, as far as it has come.
	passAt      time.Time
	age         int
	from, until time.Time
	cursor      int64
	resumeAt    time.Time
	passLimit   int64         // that resumeAt is about
	removed     bool          // anything, in this pass
	undeletable error         // the first file that can't be deleted, as the last look at the items found
	skipped     string        // why criteria were skipped in this pass; "" where none was
	plan        func(Planned) // is given what would be removed; nil to remove it

	reliance *reliance
	planning sync.Mutex // held while plan is called

	pinned       *Pinned // nil when it is to be read
	countedSince time.Time
	aheadSince   time.Time
	sawAhead     bool // any time, in this pass

	relying   sync.Mutex // held while instances that are relied on are noted
	surveyed  time.Time
	surveying time.Duration // what the last survey took
	// counted is what the last survey found, less what was removed since: what
	// is surely there, where the estimate may have counted bytes twice that
	// were there before a row claimed them.
	counted int64

	space    space // used by Round alone, but for its minimum
	wasBelow bool  // of the minimum of free space, as the log has told

	named, toldUnnamed bool // the storage has a name; that it has none was logged

	toldReason string // that the log has given, and when
	toldAt     time.Time

	mu      sync.Mutex
	usage   int64
	pending index.WithdrawnUsage // of usage
	hard    int64                // the hard limit; negative for none
	warning string
	// spaceReason is why no more is removed for the minimum of free space.
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
	for _, u := range Instances(options.Criteria) {
		r.peers[u.String()] = options.Peer(u)
		urls = append(urls, u.String())
	}
	r.reliance = newReliance(s.Instance(), urls, options.Settle, r.now)
	r.limit.Store(options.Limit)
	r.hard = -1
	r.space.minimum = options.MinimumFree
	r.makeMetrics()
	return r
}

// SetLimit changes the limit, for the next look on.
func (r *Remover) SetLimit(limit int64) { r.limit.Store(limit) }

// Run keeps the limit until the context ends.
func (r *Remover) Run(ctx context.Context) {
	var asking sync.WaitGroup
	asking.Go(func() { r.reliance.run(ctx, r.introduce) })
	defer asking.Wait()
	ticker := time.NewTicker(cmp.Or(r.options.Interval, defaultInterval))
	defer ticker.Stop()
	for {
		if err := r.Round(ctx); err != nil && ctx.Err() == nil {
			r.log.Error("can't keep the storage below its limit for now", "error", err)
			r.warn("can't compare the storage with its limit: see the log")
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// ReliesOn is what other instances receive: on whom this one relies.
func (r *Remover) ReliesOn() peer.Statement { return r.reliance.statement() }

// introduce asks a peer what it says about itself.
func (r *Remover) introduce(ctx context.Context, url string) (peer.Introduction, error) {
	return r.peers[url].Introduce(ctx)
}

// nameStorage gives a storage that this instance owns its name. Other instances ask for
// it, and answering them must not write anything.
func (r *Remover) nameStorage(ctx context.Context) {
	if r.storage.MayDelete(ctx) != nil {
		return // an unmounted one must get no name; the health tells who owns it
	}
	_, err := r.storage.Identity(ctx)
	if r.named = err == nil; err != nil && ctx.Err() == nil && !r.toldUnnamed {
		r.toldUnnamed = true
		r.log.Warn("the storage has no name yet, so that other instances which ask for its nars are told that it is unknown; that is tried again", "error", err)
	}
}

// Round compares the storage with its limit once, and removes what has to go, as
// far as anything may.
func (r *Remover) Round(ctx context.Context) error {
	if !r.named {
		r.nameStorage(ctx)
	}
	// First, as it takes nothing from anybody.
	dropped, err := deletion.DeletePending(ctx, r.storage)
	if dropped.Size > 0 {
		r.log.Info("deleted what a process had left that was ended while it removed nars", "bytes", dropped.Usage)
	}
	var left error // of files whose items are gone
	if errors.Is(err, storage.ErrNotDeleted) && ctx.Err() == nil {
		left = err
		r.setStuck(left)
	} else if err != nil && ctx.Err() == nil {
		r.log.Error("files that no item has any more can't be looked for; that is tried again", "error", err)
	}
	if r.options.Decode != nil {
		if err := importer.New(r.storage).ResolveReplacements(ctx, r.options.Decode); err != nil && ctx.Err() == nil {
			r.log.Error("nars that an import failed to replace can't be checked, and are not served; that is tried again", "error", err)
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
	if r.now().Before(r.resumeAt) && g.limit == r.passLimit {
		return nil // it was said that nothing may go
	}
	// Where nothing can be deleted, no row is to say that it is gone. On a full disk,
	// it can.
	if err := r.storage.TryWriting(ctx); err != nil && !disk.IsFull(err) {
		return err
	}
	if err := r.storage.MayDelete(ctx); err != nil {
		return err
	}
	r.passLimit = g.limit
	begun, before := r.now(), r.metrics.counts()
	kept, err := r.free(ctx, &g)
	after := r.metrics.counts()
	r.counted -= after.bytes - before.bytes
	if after.removed > before.removed {
		r.log.Info("made room in the storage", "nars", after.removed-before.removed,
			"bytes", after.bytes-before.bytes, "took", r.now().Sub(begun).Round(time.Millisecond).String())
	}
	if after.withdrawn > before.withdrawn {
		r.noteWithdrawn(ctx, after.withdrawn-before.withdrawn, after.withdrawnBytes-before.withdrawnBytes)
	}
	if errors.Is(err, storage.ErrNotDeleted) && ctx.Err() == nil {
		// What the index says to be gone has to be counted again.
		r.surveyed = time.Time{}
		r.setStuck(err)
		r.report(g, notDeleted)
		return nil
	}
	if err != nil {
		return err
	}
	r.setStuck(cmp.Or(left, r.undeletable))
	r.report(g, cmp.Or(kept, reason))
	return r.lookAtSpace(ctx) // before others take what is free now
}

// notDeleted is why nothing more is removed: items would lose their nars, and that would
// make no room.
const notDeleted = "files can't be deleted: see the log for which, and why"

// setStuck notes that files can't be deleted, nil for none. The log gives it once.
func (r *Remover) setStuck(err error) {
	r.mu.Lock()
	was := r.stuck
	r.stuck = err != nil
	r.mu.Unlock()
	if err != nil && !was {
		r.log.Error("files can't be deleted; that is tried again, and others are removed as long as that makes room", "error", err)
	} else if err == nil && was {
		r.log.Info("files can be deleted again")
	}
}

// goal is by how many bytes the storage has to shrink.
type goal struct {
	limit   int64 // that excess is about; negative for none
	excess  int64 // above the limit
	lacking int64 // of the minimum of free space
}

func (g *goal) left() int64 { return max(g.excess, g.lacking) }

// freed notes bytes that were removed, or are about to be.
func (g *goal) freed(bytes int64) { g.excess, g.lacking = g.excess-bytes, g.lacking-bytes }

// setLimit changes the limit in the middle of a pass.
func (g *goal) setLimit(limit int64) {
	switch {
	case limit < 0:
		g.excess = 0
	case g.limit >= 0: // else the next look compares the storage with it
		g.excess += g.limit - limit
	}
	g.limit = limit
}

// report says what is left of a goal, and why: in the log, and for the health.
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
		r.toldReason = ""
		return
	}
	if !r.isNews(reason) {
		return
	}
	level := slog.LevelError
	if reason == unsettled { // as after each start
		level = slog.LevelInfo
	}
	if g.excess > 0 {
		r.log.Log(context.Background(), level, "the storage is above its limit, and stays there for now", "limit", r.limit.Load(), "above", g.excess, "reason", reason)
	}
	if g.lacking > 0 || g.excess <= 0 {
		r.log.Log(context.Background(), level, "less than the minimum is free on the file system of the storage, and that stays so for now", "free", r.space.last.free, "minimum", r.space.minimum, "reason", reason)
	}
}

// warn sets what the health says.
func (r *Remover) warn(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.warning = text
}

// remindEvery is how often the log says again that the limit is not kept.
const remindEvery = time.Hour

// isNews says whether the log has not given the reason for long.
func (r *Remover) isNews(reason string) bool {
	if reason == r.toldReason && r.now().Sub(r.toldAt) < remindEvery {
		return false
	}
	r.toldReason, r.toldAt = reason, r.now()
	return true
}

// measure returns by how many bytes the storage is above its limit, and how many lack
// of the minimum of free space, apart from what is about to go; and why no more is
// removed for the latter.
func (r *Remover) measure(ctx context.Context) (g goal, reason string, err error) {
	g.limit = r.limit.Load()
	usage, surveyed, err := r.storage.Usage(ctx)
	if err != nil {
		return goal{}, "", err
	}
	// One that an earlier process has made is good for a first look.
	due := max(surveyEvery, surveyShare*r.surveying)
	above := g.limit >= 0 && usage > g.limit
	switch {
	case r.storage.IsRemote():
		// Nobody else stores anything there, and nothing takes more of it than its
		// length: what came and went since is known as well as by a count, for
		// which each thousand of names is a request.
		if due, r.counted = max(distantSurveyEvery, due), usage; r.surveyed.IsZero() {
			r.surveyed = stamp.Past(surveyed, r.now())
		}
	case above:
		due = max(r.interval(), aboveShare*r.surveying)
	}
	if r.surveyed.IsZero() && (surveyed.IsZero() || g.limit >= 0) || !r.surveyed.IsZero() && r.now().Sub(r.surveyed) >= due {
		begun := r.now()
		if err := r.storage.Scan(ctx); err != nil {
			return goal{}, "", err
		}
		r.surveyed = r.now()
		r.surveying = r.surveyed.Sub(begun)
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
		// What can't be known is not removed: the next survey will tell.
		g.excess = min(usage, r.counted) - pending.Size - g.limit
	}
	if err := r.lookAtSpace(ctx); err != nil {
		return goal{}, "", err
	}
	g.lacking, reason = r.space.lacking()
	return g, reason, nil
}

func (r *Remover) interval() time.Duration { return cmp.Or(r.options.Interval, defaultInterval) }
