package nars

import (
	"context"
	"time"

	"nar-herder/mirror/nars/queue"
	"nar-herder/narinfo"
)

// pass visits all items that lack nars, the latest first. It is used by Run alone.
type pass struct {
	f *Fetcher
	// due says that a pass must begin, and running that it has begun.
	due, running bool
	before       int64 // the position of the last item
	page         []narinfo.PathHash
	more         bool
	// endedAt is the end of the last pass, and countedAt the last count of items.
	endedAt, countedAt time.Time
}

// next returns the next item, or how long to wait for one.
func (p *pass) next(ctx context.Context, now time.Time) (hash narinfo.PathHash, pause time.Duration, err error) {
	f := p.f
	if err := p.count(ctx, now); err != nil || !f.options.All {
		return hash, queue.Longest, err
	}
	if !p.running {
		if pause = p.wait(ctx, now); pause > 0 {
			return hash, pause, nil
		}
		p.begin(ctx)
	}
	for {
		if f.isHopeless() {
			// The rest waits for room.
			p.end(now)
			return hash, f.timing.fullPause, nil
		}
		for len(p.page) > 0 {
			hash, p.page = p.page[0], p.page[1:]
			if !f.queue.IsWaiting(hash, now) {
				return hash, 0, nil
			}
		}
		if !p.more {
			p.end(now)
			return hash, f.timing.fullPause, nil
		}
		items, more, err := f.index.Lacking(ctx, &p.before, pageItems)
		if err != nil {
			return hash, 0, err
		}
		p.more = more
		for _, item := range items {
			p.page = append(p.page, item.Hash)
		}
		if ctx.Err() != nil {
			return hash, 0, ctx.Err()
		}
	}
}

// wait returns how long to wait before a pass.
func (p *pass) wait(ctx context.Context, now time.Time) time.Duration {
	f := p.f
	if p.due {
		return 0
	}
	f.mu.Lock()
	unfit := f.unfitUsage >= 0
	f.mu.Unlock()
	forgotWanted, forgotRetries := f.queue.Forgotten()
	switch {
	case unfit:
		// This check is cheap, so do it often.
		if now.Sub(p.endedAt) < f.timing.fullPause {
			return f.timing.fullPause - now.Sub(p.endedAt)
		}
		if now.Sub(p.endedAt) < f.timing.passEvery && !f.hasMoreRoom(ctx) {
			return f.timing.fullPause
		}
	case forgotWanted:
		// They haven't failed, so begin at once.
	case forgotRetries:
		if wait := f.timing.passEvery - now.Sub(p.endedAt); wait > 0 {
			return wait
		}
	default:
		return queue.Longest
	}
	p.due = true
	return 0
}

// hasMoreRoom reports whether there is considerably more room than when files last did not
// fit, so that a pass pays.
func (f *Fetcher) hasMoreRoom(ctx context.Context) bool {
	f.mu.Lock()
	usage, spare := f.unfitUsage, f.unfitSpare
	f.mu.Unlock()
	if limit := f.options.Limit; limit >= 0 {
		if is, err := f.options.Usage(ctx); err == nil && is < usage-limit/margin {
			return true
		}
	}
	is, minimum, err := f.storage.Spare(ctx)
	return err == nil && minimum >= 0 && is > spare+minimum/margin
}

func (p *pass) begin(ctx context.Context) {
	f := p.f
	if err := f.spool.DropStale(ctx); err != nil {
		f.log.Warn("can't tidy the spool of partial downloads", "error", err)
	}
	f.mu.Lock()
	f.unfits, f.unfitUsage = 0, -1
	f.mu.Unlock()
	f.queue.ResetForgotten()
	p.due, p.running, p.before, p.page, p.more = false, true, -1, nil, true
	if missing := f.Status().Missing; missing > 0 {
		f.log.Info("fetching the nars that are missing", "items", missing)
	}
}

// count counts the missing nars once an hour. In between, the count is adjusted.
func (p *pass) count(ctx context.Context, now time.Time) error {
	if !p.countedAt.IsZero() && now.Sub(p.countedAt) < queue.Longest {
		return nil
	}
	missing, err := p.f.index.CountLacking(ctx)
	if err != nil {
		return err
	}
	if !p.f.options.All { // otherwise each pass drops stale files
		if err := p.f.spool.DropStale(ctx); err != nil {
			p.f.log.Warn("can't tidy the spool of partial downloads", "error", err)
		}
	}
	p.f.missing.Store(missing)
	p.countedAt = now
	return nil
}

func (p *pass) end(now time.Time) {
	p.running, p.page, p.endedAt = false, nil, now
	if missing := p.f.Status().Missing; missing > 0 {
		p.f.log.Info("finished a pass over missing nars", "missing", missing)
	}
}

// unfit records a file for which there is no room.
func (f *Fetcher) unfit(err error) {
	usage, usageErr := f.options.Usage(f.ctx)
	spare, _, spareErr := f.storage.Spare(f.ctx)
	f.mu.Lock()
	f.unfits++
	if usageErr == nil && spareErr == nil {
		f.unfitUsage, f.unfitSpare = max(usage, 0), spare
	}
	f.mu.Unlock()
	const text = "the storage has no room: nars that don't fit wait until others are removed"
	if f.logged.IsDue(text, f.now()) {
		f.log.Info(text, "error", err)
	}
}

// isHopeless reports whether so many files in a row did not fit that the rest won't either.
func (f *Fetcher) isHopeless() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.unfits >= maxUnfit
}
