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
	"slices"
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

// ages are for how long nobody has asked for a nar: those that were idle for
// longer go first.
var ages = []time.Duration{365 * 24 * time.Hour, 90 * 24 * time.Hour, 30 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour, 0}

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
	// First, as it makes room for nothing.
	if dropped, err := r.storage.DropLeftovers(ctx); err != nil {
		return err
	} else if dropped.Size > 0 {
		r.log.Info("deleted what a process had left that was ended while it removed nars", "bytes", dropped.Usage)
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

// free removes nars until the bytes are free that are above the limit, and
// returns how many are not, and why. It can take hours, in which the limit may
// become another.
func (r *Remover) free(ctx context.Context, excess, limit int64) (left int64, reason string, err error) {
	if len(r.options.Criteria) == 0 {
		return excess, "no --storage-nar-removal-criteria are given, so nothing may go", nil
	}
	r.pinned = nil // some may have been taken off
	for tries := 0; excess > 0; {
		if err := ctx.Err(); err != nil {
			return excess, "", err
		}
		if now := r.limit.Load(); now < 0 {
			return 0, "", nil
		} else if now != limit {
			excess, limit = excess+limit-now, now
			continue
		}
		if r.options.Leaving.isAllPromised() {
			return excess, promisedAll, nil
		}
		usable := r.usable()
		if len(usable) == 0 {
			return excess, unasked, nil
		}
		r.skipped = r.skipped || len(usable) < len(r.options.Criteria)
		page, since, more, cursor, err := r.page(ctx)
		if err != nil {
			return excess, "", err
		}
		freed, complete, err := r.removeSome(ctx, page, usable, since, excess)
		excess -= freed
		r.removed = r.removed || freed > 0
		if errors.Is(err, errPinsChanged) {
			r.pinned, err = nil, storage.ErrOutdated
		}
		if tries++; errors.Is(err, storage.ErrOutdated) && tries < mostTries {
			continue // with the same page
		}
		switch {
		case err != nil:
			return excess, "", err
		case excess <= 0:
			return 0, "", nil // what is left of the page comes next time
		case !complete:
			return excess, unasked, nil
		}
		tries = 0
		if r.cursor = cursor; more {
			continue
		}
		r.cursor = 0
		if r.age++; r.age < len(ages) {
			continue
		}
		removed, skipped := r.removed, r.skipped
		r.age, r.removed, r.skipped = 0, false, false
		if removed && slices.ContainsFunc(r.options.Criteria, func(c Criterion) bool { return c.unreferenced }) {
			continue // what was referred to may go now
		}
		if skipped {
			// The others are not looked at again before those may be.
			r.resumeAt = r.now().Add(r.longestPause())
			return excess, unasked, nil
		}
		r.resumeAt = r.now().Add(fullPause)
		return excess, "no more nars match --storage-nar-removal-criteria", nil
	}
	return 0, "", nil
}

const (
	// mostTries is how often a page is looked at again because the index has
	// changed meanwhile.
	mostTries = 20
	// promisedAll is why none goes for some minutes.
	promisedAll = "instances that remove nars because they are here were told so, and any may be on its way out there"
	// unasked is why nars stay that may have to.
	unasked = "an instance that must have the nars could not be asked: see the log"
)

// usable are the criteria whose instances may be asked now.
func (r *Remover) usable() (usable []Criterion) {
	for _, criterion := range r.options.Criteria {
		if !slices.ContainsFunc(criterion.storedOn, func(u *url.URL) bool { return r.peers[u.String()].Pause() > 0 }) {
			usable = append(usable, criterion)
		}
	}
	return usable
}

// longestPause is how long it takes until all instances may be asked.
func (r *Remover) longestPause() (longest time.Duration) {
	for _, p := range r.peers {
		longest = max(longest, p.Pause())
	}
	return longest
}

// page reads the next items of the pass.
func (r *Remover) page(ctx context.Context) (page []candidate, since int64, more bool, cursor int64, err error) {
	// The index as it is now, or later, is what is decided on.
	if since, err = r.index.LastChange(ctx); err != nil {
		return nil, 0, false, 0, err
	}
	if r.pinned == nil {
		if r.pinned, err = ReadPinned(ctx, r.index); err != nil {
			return nil, 0, false, 0, err
		}
	}
	if r.cursor == 0 {
		// Of this step of the pass, so that no item is in two, or none.
		r.from, r.until = r.stepOf(r.age)
	}
	cursor = r.cursor
	rows, more, err := r.index.Candidates(ctx, r.from, r.until, &cursor, pageItems)
	if err != nil {
		return nil, 0, false, 0, err
	}
	for _, row := range rows {
		item, err := storage.NewItem(row.Item)
		if err != nil {
			return nil, 0, false, 0, err
		}
		page = append(page, candidate{item: item, lastUsed: row.LastUsed})
	}
	return page, since, more, cursor, nil
}

// stepOf is the span in which items were used last, or added, that a step of a
// pass is about.
func (r *Remover) stepOf(age int) (from, until time.Time) {
	if age == 0 {
		r.passAt = r.now()
	} else {
		from = r.passAt.Add(-ages[age-1])
	}
	until = r.passAt.Add(-ages[age])
	if ages[age] == 0 {
		until = until.Add(24 * time.Hour) // also what came just now, by any clock
	}
	return from, until
}

// candidate is an item whose nar may be removed.
type candidate struct {
	item     *storage.Item
	lastUsed time.Time
	// criteria are those whose local conditions hold.
	criteria []Criterion
}

// size is about what the nar takes of the disk.
func (c *candidate) size() (size int64) {
	const block = 4 << 10
	for n := range c.item.Narinfo.Files {
		if c.item.HasStored(n) {
			size += (c.item.StoredSize(n) + block - 1) / block * block
		}
	}
	return size
}

// removeSome removes those of a page's nars that may go, as long as the excess
// lasts, and returns how many bytes that freed. complete is false when some of
// them could not be decided on.
func (r *Remover) removeSome(ctx context.Context, page []candidate, usable []Criterion, since, excess int64) (freed int64, complete bool, err error) {
	matching, err := r.match(ctx, page, usable)
	if err != nil {
		return 0, false, err
	}
	for least := 1; len(matching) > 0 && excess > freed; {
		// So many as are needed, should all of them go, and then more and more:
		// where few may, it would be a question for each.
		var needed atomic.Int64
		needed.Store(excess - freed)
		var chunks [][]candidate
		planned, asking := int64(0), 0
		isEnough := func() bool { return planned >= excess-freed && asking >= least }
		for len(matching) > 0 && len(chunks) < chunksAtOnce && !isEnough() {
			n := 0
			for n < min(chunkItems, len(matching)) && !isEnough() {
				planned += matching[n].size()
				asking++
				n++
			}
			chunks = append(chunks, matching[:n])
			matching = matching[n:]
		}
		results := make([]struct {
			freed int64
			sure  bool
			err   error
		}, len(chunks))
		begun, answered := time.Now(), r.answered()
		var deciding sync.WaitGroup
		for i, chunk := range chunks {
			deciding.Go(func() {
				results[i].freed, results[i].sure, results[i].err = r.removeChunk(ctx, chunk, since, &needed)
			})
		}
		deciding.Wait()
		least = 2 * asking
		complete := true
		for _, result := range results {
			freed += result.freed
			complete = complete && result.sure
			if result.err != nil {
				err = result.err
			}
		}
		if err != nil || !complete {
			return freed, false, err
		}
		r.makeWay(ctx, time.Since(begun), r.answered()-answered)
	}
	return freed, true, nil
}

func (r *Remover) answered() int64 {
	if r.options.Answered == nil {
		return 0
	}
	return r.options.Answered()
}

// makeWay rests after some work, when clients have asked for much meanwhile.
func (r *Remover) makeWay(ctx context.Context, worked time.Duration, answered int64) {
	if float64(answered) < busyRate*worked.Seconds() {
		return
	}
	select {
	case <-time.After(min(paceFactor*worked, mostPause)):
	case <-ctx.Done():
	}
}

// match returns those of a page for which the local conditions of a criterion
// hold, with these criteria.
func (r *Remover) match(ctx context.Context, page []candidate, usable []Criterion) (matching []candidate, err error) {
	asksTags := slices.ContainsFunc(usable, func(c Criterion) bool { return c.asksTags() })
	asksUses := slices.ContainsFunc(usable, func(c Criterion) bool { return c.unusedFor > 0 })
	for _, c := range page {
		if _, kept := r.pinned.By(c.item.Hash); kept {
			continue
		}
		f := facts{added: c.item.AddedAt, lastUsed: c.lastUsed}
		if asksTags {
			if f.tags, err = r.index.Tags(ctx, c.item.Hash); err != nil {
				return nil, err
			}
		}
		if asksUses && r.options.Uses != nil && r.options.Uses.IsPending(c.item.Hash) {
			f.lastUsed = r.now()
		}
		for _, criterion := range usable {
			if !criterion.holds(f, r.now()) {
				continue
			}
			if criterion.unreferenced {
				referred, err := r.index.StoredReferrers(ctx, c.item.Hash)
				if err != nil {
					return nil, err
				}
				if referred {
					continue
				}
			}
			c.criteria = append(c.criteria, criterion)
		}
		if len(c.criteria) > 0 {
			matching = append(matching, c)
		}
	}
	return matching, nil
}

// removeChunk marks a few nars as leaving, asks the instances that must have
// them, and removes those that may go, but not more than are needed: so many
// bytes, which it takes them off of.
func (r *Remover) removeChunk(ctx context.Context, chunk []candidate, since int64, needed *atomic.Int64) (freed int64, sure bool, err error) {
	marked := make([]candidate, 0, len(chunk))
	for _, c := range chunk {
		if r.options.Leaving.mark(c.item.Hash) {
			marked = append(marked, c)
		}
	}
	defer func() {
		for _, c := range marked {
			r.options.Leaving.unmark(c.item.Hash)
		}
	}()
	stored, sure := r.ask(ctx, marked)
	var evict, withdraw []*storage.Item
	unreferenced := false
	for _, c := range marked {
		if needed.Load() <= 0 {
			break
		}
		// One that others have is still served; one that they don't is not.
		if i := slices.IndexFunc(c.criteria, func(criterion Criterion) bool {
			return len(criterion.storedOn) > 0 && onAll(stored, criterion, c.item.Hash)
		}); i >= 0 {
			evict = append(evict, c.item)
			needed.Add(-c.size())
			unreferenced = unreferenced || c.criteria[i].unreferenced
		} else if i := slices.IndexFunc(c.criteria, func(criterion Criterion) bool { return len(criterion.storedOn) == 0 }); i >= 0 {
			withdraw = append(withdraw, c.item)
			needed.Add(-c.size())
			unreferenced = unreferenced || c.criteria[i].unreferenced
		}
	}
	r.metrics.decided.Add(int64(len(marked)))
	if ctx.Err() != nil {
		return 0, false, ctx.Err()
	}
	guard := func(tx *index.Tx, changed map[narinfo.PathHash]index.ChangeKind) error {
		return r.stillHolds(tx, changed, unreferenced)
	}
	if len(evict) > 0 {
		gone, err := r.storage.Evict(ctx, evict, since, guard)
		freed += gone.Usage
		r.metrics.count(gone)
		if err != nil {
			return freed, false, err
		}
	}
	if len(withdraw) > 0 {
		gone, err := r.storage.Withdraw(ctx, withdraw, since, guard)
		for _, item := range gone {
			c := candidate{item: item}
			freed += c.size()
		}
		r.metrics.withdrawn.Add(int64(len(gone)))
		if err != nil {
			return freed, false, err
		}
	}
	return freed, sure, nil
}

// stillHolds is a [storage.Guard]: it looks for what could have made a decision
// wrong since the items were read.
func (r *Remover) stillHolds(tx *index.Tx, changed map[narinfo.PathHash]index.ChangeKind, unreferenced bool) error {
	if err := r.pinned.Guard(tx); err != nil {
		return err
	}
	if !unreferenced {
		return nil
	}
	for hash, kind := range changed {
		if kind == index.Added {
			return storage.ErrOutdated // it may refer to one of them
		}
		if kind != index.StorageChanged {
			continue
		}
		// Most have gone, by other chunks. One whose nar has come may refer to
		// one of them as well.
		item, err := tx.Item(hash)
		if err != nil && !errors.Is(err, storage.ErrNotFound) {
			return err
		}
		if err == nil && item.Stored != 0 {
			return storage.ErrOutdated
		}
	}
	return nil
}

// onAll says whether each instance that a criterion names has the nar.
func onAll(stored map[string]map[narinfo.PathHash]bool, criterion Criterion, hash narinfo.PathHash) bool {
	for _, u := range criterion.storedOn {
		if !stored[u.String()][hash] {
			return false
		}
	}
	return true
}

// ask asks the instances that the items' criteria name. sure is false when one
// of them did not answer.
func (r *Remover) ask(ctx context.Context, asking []candidate) (stored map[string]map[narinfo.PathHash]bool, sure bool) {
	wanted := make(map[string][]*storage.Item)
	for _, c := range asking {
		for _, u := range Instances(c.criteria) {
			wanted[u.String()] = append(wanted[u.String()], c.item)
		}
	}
	stored = make(map[string]map[narinfo.PathHash]bool, len(wanted))
	sure = true
	for name, items := range wanted {
		verdicts, err := r.peers[name].Stored(ctx, items)
		if err != nil {
			sure = false
			r.metrics.failed.Add(1)
			if ctx.Err() == nil {
				r.log.Error("can't tell whether nars may be removed, so they stay", "error", err, "again", r.peers[name].Pause().Round(time.Second).String())
			}
			continue
		}
		there := make(map[narinfo.PathHash]bool, len(items))
		for i, verdict := range verdicts {
			there[items[i].Hash] = verdict.Stored
			if !verdict.Stored {
				r.log.Debug("a nar stays, as it is not surely stored elsewhere", "item", items[i].Narinfo.StorePath.BaseName(), "instance", name, "reason", verdict.Reason)
			}
		}
		stored[name] = there
	}
	return stored, sure
}
