package search

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"nar-herder/internal/logonce"
	"nar-herder/internal/pace"
)

const (
	// pollInterval is how often Run looks for new items.
	pollInterval = time.Second
	// batch is how many items are read at a time, in about 5 ms.
	batch = 250
	// retryInterval is the pause after a failure.
	retryInterval = time.Minute
	// sweepInterval is how often removed items are dropped, and leastSweep the interval if they are
	// many.
	sweepInterval, leastSweep = 24 * time.Hour, 10 * time.Minute
	// longBuild is how long a build takes that is logged.
	longBuild = 10 * time.Second
	// mostUnread bounds how many items that the index lacks a sweep reads.
	mostUnread = 100
)

// Run reads or builds the index, and keeps it current, until the context ends. It rests for
// limits.rest times as long as it works, so that narinfos keep nine tenths of their rate on two
// processors.
func (s *Index) Run(ctx context.Context) {
	s.swept = time.Now()
	pause, began := time.Duration(0), time.Now()
	loaded := false
	var unread logonce.Filter // logged failures
	for pace.Sleep(ctx, pause) == nil {
		var err error
		if !loaded {
			err = s.load(ctx)
			loaded = err == nil
		}
		wasComplete := s.complete.Load()
		if err == nil {
			pause, err = s.step(ctx)
		}
		if err != nil && ctx.Err() == nil {
			pause = retryInterval
			unread.Log(s.log, slog.LevelWarn, time.Now(), "can't read the names of items for the search index: will retry", "error", err)
		}
		if err == nil {
			unread.Over(s.log, "the names of items are read for the search index again")
		}
		if took := time.Since(began); !wasComplete && s.complete.Load() && took > longBuild {
			s.log.Info("the search index is complete", "items", s.State().Indexed, "duration", took.Round(time.Second))
		}
	}
}

// step reads some new items, and returns how long to wait before the next step.
func (s *Index) step(ctx context.Context) (pause time.Duration, err error) {
	if s.damaged.Swap(false) {
		s.log.Warn("the search index is damaged: building another one", "file", s.path)
		s.reset()
	}
	totals, err := s.index.Totals(ctx)
	if err != nil {
		return 0, err
	}
	s.items.Store(totals.Items)
	if s.recent.items >= s.threshold() {
		if !s.tryWrite(ctx, nil) && s.recent.items >= 2*s.limits.most {
			s.complete.Store(false)
			return retryInterval, nil
		}
	}
	began := time.Now()
	names, last, more, err := s.index.NamesAfter(ctx, s.covered, batch)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	for _, named := range names {
		s.recent.add(named)
	}
	s.covered = last
	s.mu.Unlock()
	if more {
		return time.Duration(s.limits.rest) * time.Since(began), nil
	}
	s.complete.Store(true)
	if s.mustSweep(totals.Items) {
		return 0, s.sweep(ctx)
	}
	return pollInterval, nil
}

// threshold returns after how many recent items a new file is written. During a build, a larger
// file is written less often.
func (s *Index) threshold() int {
	least := s.limits.least
	if s.table != nil && !s.complete.Load() {
		least = max(least, int(s.table.meta.Items/4))
	}
	return min(least, s.limits.most)
}

// tryWrite is write, at most once a minute after a failure.
func (s *Index) tryWrite(ctx context.Context, keep func(position int64) bool) bool {
	if time.Since(s.refused) < retryInterval {
		return false
	}
	err := s.write(ctx, keep)
	switch {
	case err == nil:
		s.faults.Over(s.log, "the search index is written again")
		return true
	case errors.Is(err, errDamaged):
		s.damaged.Store(true)
	case ctx.Err() == nil:
		s.refused = time.Now()
		s.faults.Log(s.log, slog.LevelWarn, time.Now(), "can't write the search index: it is kept in memory and built again at the next start; will retry", "error", err)
	}
	return false
}

// mustSweep reports whether removed items should be dropped now.
func (s *Index) mustSweep(items int64) bool {
	indexed := s.indexed()
	since := time.Since(s.swept)
	return since >= sweepInterval || since >= leastSweep && indexed-items > max(1000, indexed/20)
}

// sweep drops removed items from the index. If the index lacks items, as their rows were damaged
// when it was built, it builds another one.
func (s *Index) sweep(ctx context.Context) error {
	s.swept = time.Now()
	present, err := s.present(ctx)
	if err != nil {
		return err
	}
	indexed := newSet(s.covered)
	removed := 0
	look := func(postings []posting) {
		for _, p := range postings {
			indexed.add(p.position)
			if !present.has(p.position) {
				removed++
			}
		}
	}
	work := s.newWork(ctx)
	for _, n := range s.recent.names {
		look(n.postings)
	}
	if s.table != nil {
		err := s.table.each(ctx, func(_ []byte, postings []posting) error {
			look(postings)
			return work.rest()
		})
		if errors.Is(err, errDamaged) {
			s.damaged.Store(true)
			return nil
		} else if err != nil {
			return err
		}
	}
	unread := present.without(indexed, mostUnread)
	for _, position := range unread {
		names, _, _, err := s.index.NamesAfter(ctx, position-1, 1)
		if err != nil {
			return err
		}
		if len(names) > 0 && names[0].Position == position {
			s.log.Info("the search index lacks items: building another one", "item", names[0].Hash.String())
			s.reset()
			return nil
		}
	}
	switch {
	case removed == 0:
	case s.table != nil:
		s.tryWrite(ctx, present.has)
	default:
		kept := s.recent.kept(present.has)
		s.mu.Lock()
		s.recent = kept
		s.mu.Unlock()
	}
	return nil
}

// positionsStep is how many positions are read at a time.
const positionsStep = 5000

// present returns the positions of all items up to the last one that is covered.
func (s *Index) present(ctx context.Context) (*set, error) {
	present := newSet(s.covered)
	work := s.newWork(ctx)
	for last := int64(-1); ; {
		positions, err := s.index.PositionsAfter(ctx, last, positionsStep)
		if err != nil {
			return nil, err
		}
		for _, position := range positions {
			if last = position; position > s.covered {
				return present, nil
			}
			present.add(position)
		}
		if len(positions) < positionsStep {
			return present, nil
		}
		if err := work.pause(); err != nil {
			return nil, err
		}
	}
}

// work is a computation in the background that rests now and then.
type work struct {
	ctx   context.Context
	times int
	since time.Time
	calls int
}

func (s *Index) newWork(ctx context.Context) *work {
	return &work{ctx: ctx, times: s.limits.rest, since: time.Now()}
}

// rest calls pause at every 256th call.
func (w *work) rest() error {
	if w.calls++; w.calls%256 != 0 {
		return nil
	}
	return w.pause()
}

// pause rests if it last did so more than 10 ms ago. It fails if the context has ended.
func (w *work) pause() error {
	took := time.Since(w.since)
	if took < 10*time.Millisecond {
		return w.ctx.Err()
	}
	err := pace.Sleep(w.ctx, time.Duration(w.times)*took)
	w.since = time.Now()
	return err
}
