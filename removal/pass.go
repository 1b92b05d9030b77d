package removal

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"nar-herder/removal/criteria"
	"nar-herder/removal/deletion"
	"nar-herder/removal/pins"
	"nar-herder/storage"
	"nar-herder/storage/uses"
)

// ages are the steps of a pass: nars that no client has requested for longer are removed
// first.
var ages = []time.Duration{365 * 24 * time.Hour, 90 * 24 * time.Hour, 30 * 24 * time.Hour, 7 * 24 * time.Hour, 24 * time.Hour, 0}

// free removes nars until the goal is reached, and returns the reason if it isn't. It can
// take hours, while the limit may change.
func (r *Remover) free(ctx context.Context, g *goal) (reason string, err error) {
	if len(r.options.Criteria) == 0 && r.options.Evictor != nil {
		return "no more nars of upstreams can be evicted, and no --storage-nar-removal-criteria are given", nil
	}
	if len(r.options.Criteria) == 0 {
		return "no --storage-nar-removal-criteria are given, so nothing may be removed", nil
	}
	r.undeletable = nil
	if r.pinned != nil {
		// Pins may have been removed; the guard notices new ones.
		if current, err := r.pinned.IsCurrent(ctx, r.index); err != nil {
			return "", err
		} else if !current {
			r.pinned = nil
		}
	}
	if r.countedSince, err = uses.Since(ctx, r.index); err != nil {
		return "", err
	}
	if err := r.readAhead(ctx); err != nil {
		return "", err
	}
	for tries := 0; g.left() > 0; {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		if now := r.limit.Load(); now != g.limit {
			g.setLimit(now)
			continue
		}
		usable, why := r.usable()
		if len(usable) == 0 {
			return why, nil
		}
		r.skipped = cmp.Or(r.skipped, why)
		page, since, more, cursor, err := r.page(ctx)
		if err != nil {
			return "", err
		}
		freed, complete, err := r.removeSome(ctx, page, usable, since, g.left())
		g.freed(freed)
		r.removed = r.removed || freed > 0
		if errors.Is(err, pins.ErrChanged) {
			r.pinned, err = nil, deletion.ErrOutdated
		}
		if tries++; errors.Is(err, deletion.ErrOutdated) && tries < mostTries {
			continue // with the same page
		}
		switch {
		case err != nil:
			if !errors.Is(err, deletion.ErrOutdated) {
				// Pause, in case nothing can be deleted.
				r.resumeAt = r.now().Add(fullPause)
			}
			return "", err
		case g.left() <= 0:
			return "", nil // the next round reads the rest of the page
		case !complete:
			_, why := r.usable()
			return cmp.Or(why, Unasked), nil
		}
		tries = 0
		if r.cursor = cursor; more {
			continue
		}
		r.cursor = 0
		if r.age++; r.age < len(ages) {
			continue
		}
		if err := r.forgetAhead(ctx); err != nil {
			return "", err
		}
		removed, skipped := r.removed, r.skipped
		r.age, r.removed, r.skipped = 0, false, ""
		if removed && r.plan == nil && slices.ContainsFunc(r.options.Criteria, func(c criteria.Criterion) bool { return c.Unreferenced }) {
			continue // the references of removed items may match now
		}
		if skipped != "" {
			// Pause until the skipped criteria may be used again.
			r.resumeAt = r.now().Add(cmp.Or(r.longestPause(), fullPause))
			return skipped, nil
		}
		r.resumeAt = r.now().Add(fullPause)
		return "no more nars match --storage-nar-removal-criteria", nil
	}
	return "", nil
}

const (
	// mostTries is how often a page is tried when the index changes meanwhile.
	mostTries = 20
	// Unasked is the reason for keeping nars while an instance can't be asked.
	Unasked = "an instance that must have the nars could not be asked: see the log"
)

// usable returns the criteria with instances that may be asked now, and depended on as far
// as is known. why says why another criterion is missing.
func (r *Remover) usable() (usable []criteria.Criterion, why string) {
	for _, criterion := range r.options.Criteria {
		reason := ""
		for _, u := range criterion.StoredOn {
			if p := r.peers[u.String()]; p.Pause() > 0 {
				reason = cmp.Or(reason, Unasked)
			} else {
				reason = cmp.Or(reason, r.dependence.Expect(u.String(), p.String()))
			}
		}
		if reason == "" {
			usable = append(usable, criterion)
		}
		why = cmp.Or(why, reason)
	}
	return usable, why
}

// longestPause returns how long it takes until all instances may be asked.
func (r *Remover) longestPause() (longest time.Duration) {
	for _, p := range r.peers {
		longest = max(longest, p.Pause())
	}
	return longest
}

// page reads the next items of the pass.
func (r *Remover) page(ctx context.Context) (page []candidate, since int64, more bool, cursor int64, err error) {
	// Read this first, so that later changes are noticed.
	if since, err = r.index.LastChange(ctx); err != nil {
		return nil, 0, false, 0, err
	}
	if r.pinned == nil {
		if r.pinned, err = pins.Read(ctx, r.index); err != nil {
			return nil, 0, false, 0, err
		}
	}
	if r.cursor == 0 {
		// The span doesn't change during a step, so that each item is in one step.
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
			r.log.Error("keeping an item that can't be read", "error", err)
			continue
		}
		page = append(page, candidate{item: item, lastUsed: row.LastUsed})
	}
	return page, since, more, cursor, nil
}

// stepOf returns the time span of a step: it handles items that were last used, or added,
// within it.
func (r *Remover) stepOf(age int) (from, until time.Time) {
	if age == 0 {
		r.passAt = r.now()
	} else {
		from = r.passAt.Add(-ages[age-1])
	}
	until = r.passAt.Add(-ages[age])
	if ages[age] == 0 {
		until = until.AddDate(1000, 0, 0) // also items with times ahead of the clock
	}
	return from, until
}
