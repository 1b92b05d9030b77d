package removal

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

const (
	// lateFor is how long removed bytes count as free before they are: some file systems free
	// them late, and open files are freed when they are closed.
	lateFor = 10 * time.Minute
	// linkedFor is the same for files with other links, as in an export, which the next export
	// removes.
	linkedFor = 24 * time.Hour
	// shrinkFor and shrinkShare bound removals because other programs fill the file system:
	// within shrinkFor, at most one part of shrinkShare of the storage.
	shrinkFor   = 24 * time.Hour
	shrinkShare = 2

	// perNar is about how much disk space a nar takes beyond its length.
	perNar = 2 << 10
)

// Reasons for removing nothing more to free space.
const (
	spaceUnreachable = "even without any nar the minimum would not be free, so none is removed for it: make room there, or lower --storage-minimum-free-space"
	spaceTaken       = "other programs have taken much of it, and at most half of the nars are removed for them within a day: make room there"
)

// space tracks the free space of the storage's file system. It distinguishes usage of other
// programs from usage of the storage, and knows which removed bytes are not free yet.
type space struct {
	minimum int64 // negative for none

	known  bool
	last   look
	owed   []owing
	most   int64 // the most that the nars took within shrinkFor, up to the target
	mostAt time.Time
}

// look is the state of the file system and the storage at one moment.
type look struct {
	free    int64 // of the file system
	stored  int64 // estimated usage of the nars in the index
	pending int64 // the withdrawn part of that
	// evicted is how many bytes were evicted so far, and linked how many removed bytes have
	// other links.
	evicted, linked int64
}

// owing are removed bytes that are not free yet.
type owing struct {
	until time.Time // when they no longer count
	bytes int64
}

// observe updates the state.
func (s *space) observe(now time.Time, l look) {
	s.owed = slices.DeleteFunc(s.owed, func(o owing) bool { return !now.Before(o.until) })
	if s.known {
		// Removed bytes should be free now.
		late := (s.last.stored - l.stored) - (l.free - s.last.free)
		if late < 0 {
			s.pay(-late)
		}
		// If they aren't, only those that were removed just now are late: other programs may
		// have taken the rest.
		linked := min(max(late, 0), l.linked-s.last.linked)
		s.owe(now.Add(linkedFor), linked)
		removed := l.evicted - s.last.evicted + max(s.last.pending-l.pending, 0)
		s.owe(now.Add(lateFor), min(late, removed)-linked)
	}
	s.known, s.last = true, l
	if most := min(s.target(), l.stored); most >= s.most || now.Sub(s.mostAt) >= shrinkFor {
		s.most, s.mostAt = most, now
	}
}

func (s *space) owe(until time.Time, bytes int64) {
	if bytes > 0 {
		s.owed = append(s.owed, owing{until, bytes})
	}
}

// pay subtracts bytes that have become free from those that are owed.
func (s *space) pay(bytes int64) {
	for bytes > 0 && len(s.owed) > 0 {
		paid := min(bytes, s.owed[0].bytes)
		bytes -= paid
		if s.owed[0].bytes -= paid; s.owed[0].bytes == 0 {
			s.owed = s.owed[1:]
		}
	}
}

func (s *space) owing() (sum int64) {
	for _, o := range s.owed {
		sum += o.bytes
	}
	return sum
}

// target is how much the nars may take while the minimum is free.
func (s *space) target() int64 { return s.last.free + s.owing() + s.last.stored - s.minimum }

// lacking returns how many bytes must be removed to reach the minimum, apart from withdrawn
// ones, and why not more.
func (s *space) lacking() (bytes int64, reason string) {
	if s.minimum < 0 || !s.known {
		return 0, ""
	}
	lacking := s.minimum - s.last.free - s.owing() - s.last.pending
	if lacking <= 0 {
		return 0, ""
	}
	if s.target() <= 0 {
		return 0, spaceUnreachable
	}
	if most := s.last.stored - s.last.pending - (s.most - s.most/shrinkShare); lacking > most {
		return max(most, 0), spaceTaken
	}
	return lacking, ""
}

// lookAtSpace observes the free space, if the storage has a file system.
func (r *Remover) lookAtSpace(ctx context.Context) error {
	free, _, err := r.storage.FreeSpace()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	} else if err != nil {
		return err
	}
	totals, err := r.storage.Totals(ctx)
	if err != nil {
		return err
	}
	pending, err := r.index.WithdrawnStored(ctx)
	if err != nil {
		return err
	}
	evicted := r.metrics.bytes.Load()
	if r.options.Evictor != nil {
		evicted += r.options.Evictor.Evicted()
	}
	r.space.observe(r.now(), look{
		free: free, stored: totals.StoredSize + perNar*totals.StoredNars, pending: pending.Size,
		evicted: evicted, linked: r.storage.LinkedRemoved(),
	})
	r.noteSpace(free < r.space.minimum)
	return nil
}

// noteSpace logs when the free space falls below the minimum, and when it is back.
func (r *Remover) noteSpace(isBelow bool) {
	if isBelow == r.wasBelow {
		return
	}
	r.wasBelow = isBelow
	if isBelow {
		r.log.Warn("less than the minimum is free on the file system of the storage: imports and mirroring are refused", "free", r.space.last.free, "minimum", r.space.minimum)
	} else {
		r.log.Info("the minimum is free again on the file system of the storage", "free", r.space.last.free, "minimum", r.space.minimum)
	}
}

// spaceWarning returns a warning for the health page; "" if the minimum is free.
func (r *Remover) spaceWarning() string {
	minimum := r.space.minimum
	if minimum < 0 {
		return ""
	}
	free, _, err := r.storage.FreeSpace()
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return ""
	case err != nil:
		return "can't find out how much is free on the file system of the storage: see the log"
	case free >= minimum:
		return ""
	}
	text := fmt.Sprintf("%d bytes are free on the file system of the storage, and at least %d should be: imports and mirroring are refused", free, minimum)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.spaceReason != "" {
		text += "; " + r.spaceReason
	}
	return text + r.withdrawnNote()
}

// freeBytes is the value of a metric.
func (r *Remover) freeBytes() (free float64, isKnown bool) {
	n, _, err := r.storage.FreeSpace()
	return float64(n), err == nil
}
