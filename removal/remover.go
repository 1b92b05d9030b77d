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

	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Options of [New].
type Options struct {
	// Limit is what the storage is kept below, in bytes on the disk; negative
	// for none.
	Limit int64
	// Criteria say which nars may go: those for which any of them holds.
	Criteria []Criterion
	// Peer returns the instance at a URL.
	Peer func(*url.URL) *peer.Peer
	// Leaving is what others are told; nil for one that nobody asks.
	Leaving *Leaving
	// Uses knows what was asked for and is not written down yet; nil for
	// nothing.
	Uses interface {
		IsPending(hash narinfo.PathHash) bool
	}
	// Answered is how many requests were answered so far, so that removals make
	// way where there are many; nil for none.
	Answered func() int64
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
	// surveyShare bounds that part.
	surveyShare = 50
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
	mostPause  = 2 * time.Second
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
	passLimit   int64 // that resumeAt is about
	removed     bool  // anything, in this pass
	skipped     bool  // criteria, in this pass, as their instances could not be asked

	knowsOlder bool      // whether an earlier process has promised nars
	promisedAt time.Time // as it was noted

	pinned    *Pinned // nil when it is to be read
	surveyed  time.Time
	surveying time.Duration // what the last survey took

	mu      sync.Mutex
	usage   int64
	pending int64 // of usage: what goes when its grace is over
	warning string
}

// New makes a remover.
func New(s *storage.Storage, x *index.Index, options Options) *Remover {
	r := &Remover{storage: s, index: x, options: options, log: options.Log, now: options.Now, peers: make(map[string]*peer.Peer)}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.options.Leaving == nil {
		r.options.Leaving = NewLeaving(r.now)
	}
	for _, u := range Instances(options.Criteria) {
		r.peers[u.String()] = options.Peer(u)
	}
	r.limit.Store(options.Limit)
	r.makeMetrics()
	return r
}

// SetLimit changes the limit, for the next look on.
func (r *Remover) SetLimit(limit int64) { r.limit.Store(limit) }

// Run keeps the limit until the context ends.
func (r *Remover) Run(ctx context.Context) {
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

// Round compares the storage with its limit once, and removes what has to go, as
// far as anything may.
func (r *Remover) Round(ctx context.Context) error {
	// First, as it takes nothing from anybody.
	dropped, err := r.storage.DropLeftovers(ctx)
	if dropped.Size > 0 {
		r.log.Info("deleted what a process had left that was ended while it removed nars", "bytes", dropped.Usage)
	}
	if err != nil && ctx.Err() == nil {
		// One file that can't be deleted is no reason to keep all others.
		r.log.Error("files that no item has any more can't be deleted; that is tried again", "error", err)
	}
	if err := r.keepPromises(ctx); err != nil {
		return err
	}
	excess, limit, err := r.measure(ctx)
	if err != nil {
		return err
	}
	if excess <= 0 {
		r.resumeAt = time.Time{}
		r.warn("")
		return nil
	}
	if r.now().Before(r.resumeAt) && limit == r.passLimit {
		return nil // it was said that nothing may go
	}
	// Where nothing can be deleted, no row is to say that it is gone.
	if indexErr, bytesErr := r.storage.Healthy(ctx); indexErr != nil || bytesErr != nil {
		return errors.Join(indexErr, bytesErr)
	}
	r.passLimit = limit
	begun, before := r.now(), r.metrics.counts()
	left, reason, err := r.free(ctx, excess, limit)
	if after := r.metrics.counts(); after != before {
		r.log.Info("made room in the storage", "nars", after.removed-before.removed, "withdrawn", after.withdrawn-before.withdrawn,
			"bytes", after.bytes-before.bytes, "took", r.now().Sub(begun).Round(time.Millisecond).String())
	}
	if err != nil {
		return err
	}
	if left > 0 {
		text := fmt.Sprintf("the storage is %d bytes above its limit of %d: %s", left, r.limit.Load(), reason)
		if r.warn(text) {
			r.log.Error("the storage is above its limit, and stays there for now", "limit", r.limit.Load(), "above", left, "reason", reason)
		}
		return nil
	}
	r.warn("")
	return nil
}

const (
	// promisedSetting is when something was promised last, to the day.
	promisedSetting = "removal_promised"
	// promisedFor is for how long after that an instance counts as one that is
	// asked in the original's way.
	promisedFor = 30 * 24 * time.Hour
)

// keepPromises has this process keep what an earlier one has promised, and the
// next one what this one has.
func (r *Remover) keepPromises(ctx context.Context) error {
	promised := r.options.Leaving.hasPromised()
	if r.knowsOlder && (!promised || r.now().Sub(r.promisedAt) < 24*time.Hour) {
		return nil
	}
	if !r.knowsOlder {
		text, err := r.index.Setting(ctx, promisedSetting)
		if err != nil {
			return err
		}
		if text != "" {
			if r.promisedAt, err = time.Parse(time.RFC3339, text); err != nil {
				return fmt.Errorf("when nars were promised to stay, in the database: %w", err)
			}
		}
		if r.now().Sub(r.promisedAt) < promisedFor {
			r.options.Leaving.keepOlder()
		}
		r.knowsOlder = true
	}
	if !promised || r.now().Sub(r.promisedAt) < 24*time.Hour {
		return nil
	}
	at := r.now()
	if err := r.index.Update(ctx, func(tx *index.Tx) error {
		return tx.SetSetting(promisedSetting, at.UTC().Format(time.RFC3339))
	}); err != nil {
		return err
	}
	r.promisedAt = at
	return nil
}

// warn sets what the health says; it returns whether that is news.
func (r *Remover) warn(text string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	news := (text == "") != (r.warning == "")
	r.warning = text
	return news
}

// Warnings are what is not as it should be, for the health.
func (r *Remover) Warnings() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.warning == "" {
		return nil
	}
	return []string{r.warning}
}

// measure returns by how many bytes the storage is above its limit, apart from
// what is about to go, and the limit.
func (r *Remover) measure(ctx context.Context) (excess, limit int64, err error) {
	limit = r.limit.Load()
	usage, surveyed, err := r.storage.Usage(ctx)
	if err != nil {
		return 0, 0, err
	}
	// One that an earlier process has made is good for a first look.
	due := max(surveyEvery, surveyShare*r.surveying)
	if above := limit >= 0 && usage > limit; above {
		// Before anything goes, it is to be known.
		due = max(r.interval(), surveyShare*r.surveying)
	}
	if r.surveyed.IsZero() && (surveyed.IsZero() || limit >= 0) || !r.surveyed.IsZero() && r.now().Sub(r.surveyed) >= due {
		begun := r.now()
		if err := r.storage.Survey(ctx); err != nil {
			return 0, 0, err
		}
		r.surveyed = r.now()
		r.surveying = r.surveyed.Sub(begun)
		if usage, _, err = r.storage.Usage(ctx); err != nil {
			return 0, 0, err
		}
	}
	pending, err := r.index.WithdrawnStored(ctx)
	if err != nil {
		return 0, 0, err
	}
	r.mu.Lock()
	r.usage, r.pending = usage, pending
	r.mu.Unlock()
	if limit < 0 {
		return 0, limit, nil
	}
	return usage - pending - limit, limit, nil
}

func (r *Remover) interval() time.Duration { return cmp.Or(r.options.Interval, defaultInterval) }
