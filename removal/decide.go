package removal

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/removal/criteria"
	"nar-herder/removal/deletion"
	"nar-herder/removal/dependence"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// candidate is an item with a nar that may be removed.
type candidate struct {
	item     *storage.Item
	lastUsed time.Time
	// criteria are those with local conditions that hold.
	criteria []criteria.Criterion
}

// size estimates the usage of the disk.
func (c *candidate) size() (size int64) {
	const block = 4 << 10
	for n := range c.item.Narinfo.Files {
		if c.item.HasStored(n) {
			size += (c.item.StoredSize(n) + block - 1) / block * block
		}
	}
	return size
}

// removeSome removes nars of a page that match a criterion, until the excess is removed, and
// returns how many bytes that freed. complete is false if some decisions were not possible.
func (r *Remover) removeSome(ctx context.Context, page []candidate, usable []criteria.Criterion, since, excess int64) (freed int64, complete bool, err error) {
	matching, err := r.match(ctx, page, usable)
	if err != nil {
		return 0, false, err
	}
	for least := 1; len(matching) > 0 && excess > freed; {
		// Begin with as many nars as suffice if all can be removed, then double the number:
		// otherwise, if few match, each would cost a request.
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

// makeWay rests after some work, if clients sent many requests meanwhile.
func (r *Remover) makeWay(ctx context.Context, worked time.Duration, answered int64) {
	if float64(answered) < busyRate*worked.Seconds() {
		return
	}
	_ = pace.Sleep(ctx, min(paceFactor*worked, mostPause))
}

// match returns the items of a page that match the local conditions of criteria, with these
// criteria. It skips items with files that are known to be undeletable.
func (r *Remover) match(ctx context.Context, page []candidate, usable []criteria.Criterion) (matching []candidate, err error) {
	asksTags := slices.ContainsFunc(usable, func(c criteria.Criterion) bool { return c.AsksTags() })
	asksUses := slices.ContainsFunc(usable, func(c criteria.Criterion) bool { return c.UnusedFor > 0 })
	for _, c := range page {
		if _, kept := r.pinned.By(c.item.Hash); kept {
			continue
		}
		f := criteria.Facts{Added: c.item.AddedAt, LastUsed: c.lastUsed, CountedSince: r.countedSince}
		if err = r.noteAhead(ctx, &f); err != nil {
			return nil, err
		}
		if asksTags {
			if f.Tags, err = r.index.Tags(ctx, c.item.Hash); err != nil {
				return nil, err
			}
		}
		if asksUses && r.isPending(c.item.Hash) {
			f.LastUsed = r.now()
		}
		for _, criterion := range usable {
			if !criterion.Holds(f, r.now()) {
				continue
			}
			if criterion.Unreferenced {
				// An item without a nar here is still served, and needs its references;
				// these are available at the instance with its nar.
				referred, err := r.index.IsReferredTo(ctx, c.item.Hash, len(criterion.StoredOn) > 0)
				if err != nil {
					return nil, err
				}
				if referred {
					continue
				}
			}
			c.criteria = append(c.criteria, criterion)
		}
		if len(c.criteria) == 0 {
			continue
		}
		if err := r.storage.MayDrop(c.item); err != nil {
			r.undeletable = cmp.Or(r.undeletable, err)
			continue
		}
		matching = append(matching, c)
	}
	return matching, nil
}

// removeChunk asks the instances that must have a few nars, and removes those that match,
// until needed, from which it subtracts their bytes, is reached.
func (r *Remover) removeChunk(ctx context.Context, chunk []candidate, since int64, needed *atomic.Int64) (freed int64, sure bool, err error) {
	asked := r.now()
	stored, sure := r.ask(ctx, chunk)
	var evict, withdraw []decided
	for _, c := range chunk {
		if needed.Load() <= 0 {
			break
		}
		// Prefer a criterion by which others still serve the nar.
		if i := slices.IndexFunc(c.criteria, func(criterion criteria.Criterion) bool {
			return len(criterion.StoredOn) > 0 && onAll(stored, criterion, c.item.Hash)
		}); i >= 0 {
			evict = append(evict, decided{c, c.criteria[i]})
			needed.Add(-c.size())
		} else if i := slices.IndexFunc(c.criteria, func(criterion criteria.Criterion) bool { return len(criterion.StoredOn) == 0 }); i >= 0 {
			withdraw = append(withdraw, decided{c, c.criteria[i]})
			needed.Add(-c.size())
		}
	}
	r.metrics.decided.Add(int64(len(chunk)))
	if ctx.Err() != nil {
		return 0, false, ctx.Err()
	}
	if r.plan != nil {
		return r.planned(evict, withdraw), sure, nil
	}
	if len(evict) > 0 {
		var instances []*url.URL
		for _, d := range evict {
			instances = append(instances, d.by.StoredOn...)
		}
		if err := dependence.Record(ctx, r.index, instances); err != nil {
			return 0, false, err
		}
		evicted, gone, err := deletion.Evict(ctx, r.storage, items(evict), since, r.guard(evict, asked))
		freed += gone.Usage
		r.metrics.count(gone)
		r.latest.Add(r.now(), evicted...)
		r.logRemovals("removed a nar that another instance has", evict, evicted)
		if errors.Is(err, errLate) {
			r.log.Warn("keeping nars for now: the answers of another instance, that it has them, are too old")
			return freed, false, nil
		} else if err != nil {
			return freed, false, err
		}
	}
	if len(withdraw) > 0 {
		gone, err := deletion.Withdraw(ctx, r.storage, items(withdraw), since, r.guard(withdraw, asked))
		for _, item := range gone {
			c := candidate{item: item}
			freed += c.size()
			r.metrics.withdrawnBytes.Add(c.size())
		}
		r.metrics.withdrawn.Add(int64(len(gone)))
		r.logRemovals("withdrew an item", withdraw, gone)
		if err != nil {
			return freed, false, err
		}
	}
	return freed, sure, nil
}

// decided is a candidate to be removed.
type decided struct {
	candidate
	by criteria.Criterion
}

func items(going []decided) []*storage.Item {
	items := make([]*storage.Item, len(going))
	for i, d := range going {
		items[i] = d.item
	}
	return items
}

// logRemovals logs each removed item with its criterion.
func (r *Remover) logRemovals(message string, decided []decided, gone []*storage.Item) {
	for _, d := range decided {
		if slices.Contains(gone, d.item) {
			r.log.Info(message, "item", d.item.Narinfo.StorePath.String(), "bytes", d.item.StoredBytes(), "criterion", d.by.String())
		}
	}
}

// errLate says that answers are too old to decide on.
var errLate = errors.New("the answers of other instances are too old")

// guard returns a [deletion.Guard] that re-validates decisions: the items and the answers of
// other instances may be outdated.
func (r *Remover) guard(going []decided, asked time.Time) deletion.Guard {
	return func(tx *index.Tx, changed map[narinfo.PathHash]index.ChangeKind) error {
		if len(going[0].by.StoredOn) > 0 && r.dependence.IsLate(asked) {
			return errLate
		}
		if err := r.pinned.Guard(tx); err != nil {
			return err
		}
		// New tags and uses are not changes of the item.
		targets := make(map[narinfo.PathHash]bool)
		for _, d := range going {
			if d.by.Unreferenced {
				targets[d.item.Hash] = true
			}
			if !d.by.AsksTags() && d.by.UnusedFor == 0 {
				continue
			}
			f := criteria.Facts{Added: d.item.AddedAt, CountedSince: r.countedSince, AheadSince: r.aheadSince}
			var err error
			if f.Tags, err = tx.Tags(d.item.Hash); err != nil {
				return err
			}
			if f.LastUsed, err = tx.LastUsed(d.item.Hash); err != nil {
				return err
			}
			if !d.by.Holds(f, r.now()) || d.by.UnusedFor > 0 && r.isPending(d.item.Hash) {
				return deletion.ErrOutdated
			}
		}
		if len(targets) == 0 {
			return nil
		}
		return refersToNone(tx, changed, targets)
	}
}

// refersToNone returns an error if a changed item refers to one of the targets.
func refersToNone(tx *index.Tx, changed map[narinfo.PathHash]index.ChangeKind, targets map[narinfo.PathHash]bool) error {
	for hash := range changed {
		row, err := tx.Item(hash)
		if errors.Is(err, storage.ErrNotFound) {
			continue
		} else if err != nil {
			return err
		}
		if !row.WithdrawnAt.IsZero() {
			continue
		}
		item, err := storage.NewItem(row)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(item.Narinfo.References, func(path narinfo.StorePath) bool { return path.Hash != hash && targets[path.Hash] }) {
			return deletion.ErrOutdated
		}
	}
	return nil
}

func (r *Remover) isPending(hash narinfo.PathHash) bool {
	return r.options.Uses != nil && r.options.Uses.IsPending(hash)
}

// onAll reports whether each instance that a criterion names has the nar.
func onAll(stored map[string]map[narinfo.PathHash]bool, criterion criteria.Criterion, hash narinfo.PathHash) bool {
	for _, u := range criterion.StoredOn {
		if !stored[u.String()][hash] {
			return false
		}
	}
	return true
}

// ask asks the instances that the items' criteria name for the items. sure is false if one
// of them did not answer.
func (r *Remover) ask(ctx context.Context, asking []candidate) (stored map[string]map[narinfo.PathHash]bool, sure bool) {
	wanted := make(map[string][]*storage.Item)
	for _, c := range asking {
		for _, u := range criteria.Instances(c.criteria) {
			wanted[u.String()] = append(wanted[u.String()], c.item)
		}
	}
	stored = make(map[string]map[narinfo.PathHash]bool, len(wanted))
	sure = true
	for name, items := range wanted {
		at := r.now()
		verdicts, who, err := r.peers[name].Stored(ctx, items)
		if err != nil {
			sure = false
			r.metrics.failed.Add(1)
			if ctx.Err() == nil {
				r.unanswered.Log(r.log, slog.LevelWarn, r.now(), "can't tell whether nars may be removed, so they stay", "error", err, "retry_in", r.peers[name].Pause().Round(time.Second))
			}
			continue
		}
		r.dependence.Hear(name, at, who)
		if reason := r.dependence.Refusal(r.peers[name].String(), who); reason != "" && slices.ContainsFunc(verdicts, func(v peer.Verdict) bool { return v.Stored }) {
			// Expect had hoped otherwise; it excludes this instance from now on.
			sure = false
			r.log.Debug("nars stay", "reason", reason)
			continue
		}
		there := make(map[narinfo.PathHash]bool, len(items))
		for i, verdict := range verdicts {
			there[items[i].Hash] = verdict.Stored
			if !verdict.Stored {
				r.log.Debug("keeping a nar that another instance may not have", "item", items[i].Narinfo.StorePath.String(), "server", name, "reason", verdict.Reason)
			}
		}
		stored[name] = there
	}
	if sure && len(wanted) > 0 {
		r.unanswered.Over(r.log, "the instances that may have nars answer again")
	}
	return stored, sure
}
