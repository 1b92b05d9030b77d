package removal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"
)

const (
	// lateFor is how long removed bytes that have not become free count as if they
	// had: file systems give them back late, and readers when they close the file.
	lateFor = 10 * time.Minute
	// linkedFor is the same for files with other names, such as in an export: those
	// go at the next export.
	linkedFor = 24 * time.Hour
	// shrinkFor and shrinkShare bound what is removed because other programs fill
	// the file system: within shrinkFor, one of so many parts of what was there.
	shrinkFor   = 24 * time.Hour
	shrinkShare = 2

	// perNar is about what a nar takes of the disk beyond its length.
	perNar = 2 << 10
)

// Why nothing more is removed for the sake of free space.
const (
	spaceUnreachable = "even without any nar the minimum would not be free, so none is removed for it: make room there, or lower --storage-minimum-free-space"
	spaceTaken       = "other programs have taken much of it, and no more than half of the nars make way for them within a day: make room there"
)

// space follows the free space of the storage's file system from one look to the
// next. It tells what other programs take from what the storage takes, and knows which
// removed bytes are not free yet.
type space struct {
	minimum int64 // negative for none

	known  bool
	last   look
	owed   []owing
	most   int64 // what the nars took at the most within shrinkFor, as far as they should
	mostAt time.Time
}

// look is what there is to see of the file system and the storage.
type look struct {
	free    int64 // of the file system
	stored  int64 // what the nars of the index take, about
	pending int64 // what of that is withdrawn
	// evicted is how many bytes were evicted so far, and linked how many of all
	// removed ones have other names.
	evicted, linked int64
}

// owing are bytes that were removed, and are not free yet.
type owing struct {
	until time.Time // when they count no more
	bytes int64
}

// observe takes a look.
func (s *space) observe(now time.Time, l look) {
	s.owed = slices.DeleteFunc(s.owed, func(o owing) bool { return !now.Before(o.until) })
	if s.known {
		// Bytes that the nars no longer take should be free now.
		late := (s.last.stored - l.stored) - (l.free - s.last.free)
		if late < 0 {
			s.pay(-late)
		}
		// Of those that are not, only the ones that were removed just now are late:
		// other programs may have taken the rest.
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

// pay takes bytes that have become free off those that are owed.
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

// target is what the nars could take with the minimum free beside them.
func (s *space) target() int64 { return s.last.free + s.owing() + s.last.stored - s.minimum }

// lacking returns how many bytes have to be removed for the minimum to be free, apart
// from the withdrawn ones, which are about to be, and why it is not more.
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
	r.space.observe(r.now(), look{
		free: free, stored: totals.StoredSize + perNar*totals.StoredNars, pending: pending.Size,
		evicted: r.metrics.bytes.Load(), linked: r.storage.LinkedRemoved(),
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

// spaceWarning is for the health: "" when the minimum is free.
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

// freeBytes is for the metrics.
func (r *Remover) freeBytes() float64 {
	free, _, err := r.storage.FreeSpace()
	if err != nil {
		return math.NaN()
	}
	return float64(free)
}
