// Package lacking visits the items that lack nars, the latest first, again and again as long as
// that may help.
package lacking

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"nar-herder/mirror/nars/queue"
	"nar-herder/mirror/nars/room"
	"nar-herder/mirror/nars/spool"
	"nar-herder/narinfo"
	"nar-herder/storage/index"
)

// pageItems is how many items a pass has in memory.
const pageItems = 200

// Options of [New].
type Options struct {
	// All visits the items; otherwise they are only counted.
	All   bool
	Index *index.Index
	// Queue has the items that are not visited, because they have failed and are not due yet.
	Queue *queue.Queue
	// Room ends a pass when nothing fits any more.
	Room *room.Room
	// Spool is tidied before a pass.
	Spool *spool.Spool
	// Missing is about how many items lack nars. It is counted once an hour; the caller
	// adjusts it in between.
	Missing *atomic.Int64
	// Pause is the wait after a pass, and Every the time until the next one if that skipped
	// some items.
	Pause, Every time.Duration
	Log          *slog.Logger
}

// Pass visits the items. It is for one goroutine.
type Pass struct {
	Options
	// due says that a pass must begin, and running that it has begun.
	due, running bool
	before       int64 // the position of the last item
	page         []narinfo.PathHash
	more         bool
	// endedAt is the end of the last pass, and countedAt the last count of items.
	endedAt, countedAt time.Time
}

// New makes a Pass, which is due at once.
func New(options Options) *Pass { return &Pass{Options: options, due: options.All} }

// Next returns the next item, or how long to wait for one.
func (p *Pass) Next(ctx context.Context, now time.Time) (hash narinfo.PathHash, pause time.Duration, err error) {
	if err := p.count(ctx, now); err != nil || !p.All {
		return hash, queue.Longest, err
	}
	if !p.running {
		if pause = p.wait(ctx, now); pause > 0 {
			return hash, pause, nil
		}
		p.begin(ctx)
	}
	for {
		if p.Room.IsHopeless() {
			// The rest waits for room.
			p.end(now)
			return hash, p.Pause, nil
		}
		for len(p.page) > 0 {
			hash, p.page = p.page[0], p.page[1:]
			if !p.Queue.IsWaiting(hash, now) {
				return hash, 0, nil
			}
		}
		if !p.more {
			p.end(now)
			return hash, p.Pause, nil
		}
		items, more, err := p.Index.Lacking(ctx, &p.before, pageItems)
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
func (p *Pass) wait(ctx context.Context, now time.Time) time.Duration {
	if p.due {
		return 0
	}
	forgotWanted, forgotRetries := p.Queue.Forgotten()
	switch {
	case p.Room.HasUnfit():
		// This check is cheap, so do it often.
		if now.Sub(p.endedAt) < p.Pause {
			return p.Pause - now.Sub(p.endedAt)
		}
		if now.Sub(p.endedAt) < p.Every && !p.Room.HasGrown(ctx) {
			return p.Pause
		}
	case forgotWanted:
		// They haven't failed, so begin at once.
	case forgotRetries:
		if wait := p.Every - now.Sub(p.endedAt); wait > 0 {
			return wait
		}
	default:
		return queue.Longest
	}
	p.due = true
	return 0
}

func (p *Pass) begin(ctx context.Context) {
	if err := p.Spool.DropStale(ctx); err != nil {
		p.Log.Warn("can't tidy the spool of partial downloads", "error", err)
	}
	p.Room.Retry()
	p.Queue.ResetForgotten()
	p.due, p.running, p.before, p.page, p.more = false, true, -1, nil, true
	if missing := p.Missing.Load(); missing > 0 {
		p.Log.Info("fetching the nars that are missing", "items", missing)
	}
}

// count counts the missing nars once an hour. In between, the count is adjusted.
func (p *Pass) count(ctx context.Context, now time.Time) error {
	if !p.countedAt.IsZero() && now.Sub(p.countedAt) < queue.Longest {
		return nil
	}
	missing, err := p.Index.CountLacking(ctx)
	if err != nil {
		return err
	}
	if !p.All { // otherwise each pass drops stale files
		if err := p.Spool.DropStale(ctx); err != nil {
			p.Log.Warn("can't tidy the spool of partial downloads", "error", err)
		}
	}
	p.Missing.Store(missing)
	p.countedAt = now
	return nil
}

func (p *Pass) end(now time.Time) {
	p.running, p.page, p.endedAt = false, nil, now
	if missing := p.Missing.Load(); missing > 0 {
		p.Log.Info("finished a pass over missing nars", "missing", missing)
	}
}
