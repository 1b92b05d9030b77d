package removal

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"
)

const (
	// owedFor is how long removed bytes that have not become free count as if they
	// had: file systems give them back late, hard links such as those of an export
	// keep them until the next export, and readers until they close the file.
	owedFor = 24 * time.Hour
	// shrinkFor and shrinkShare bound what is removed because other programs fill
	// the file system: within shrinkFor, the storage loses one of so many parts of
	// what it could have taken before.
	shrinkFor   = 24 * time.Hour
	shrinkShare = 4

	// perNar is about what a nar takes of the disk beyond its length.
	perNar = 2 << 10
)

// Why nothing more is removed for the sake of free space.
const (
	spaceUnreachable = "even without any nar the minimum would not be free, so none is removed for it: make room there, or lower --storage-minimum-free-space"
	spaceTaken       = "other programs have taken much of it within a day, and no more nars make way for them until that day is over: make room there"
)

// space follows the free space of the storage's file system from one look to the
// next. It tells what other programs take from what the storage takes, and knows which
// removed bytes are not free yet.
type space struct {
	minimum int64 // negative for none

	known        bool
	free, stored int64 // as of the last look
	owed         []owing
	most         int64 // the largest target within shrinkFor
	mostAt       time.Time
}

// owing are bytes that were removed, and are not free yet.
type owing struct {
	at    time.Time
	bytes int64
}

// observe takes a look: free is that of the file system, and stored about what the
// nars of the index take of it.
func (s *space) observe(now time.Time, free, stored int64) {
	for len(s.owed) > 0 && now.Sub(s.owed[0].at) >= owedFor {
		s.owed = s.owed[1:]
	}
	if s.known {
		// What the nars no longer take should be free now.
		gone := s.stored - stored
		switch late := gone - (free - s.free); {
		case late < 0:
			s.pay(-late)
		case gone > 0 && late > 0:
			s.owed = append(s.owed, owing{now, min(late, gone)})
		}
	}
	s.known, s.free, s.stored = true, free, stored
	if target := s.target(); target >= s.most || now.Sub(s.mostAt) >= shrinkFor {
		s.most, s.mostAt = target, now
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
func (s *space) target() int64 { return s.free + s.owing() + s.stored - s.minimum }

// lacking returns how many bytes have to be removed for the minimum to be free, apart
// from the pending ones, which are about to be, and why it is not more.
func (s *space) lacking(pending int64) (bytes int64, reason string) {
	if s.minimum < 0 {
		return 0, ""
	}
	lacking := s.minimum - s.free - s.owing() - pending
	if lacking <= 0 {
		return 0, ""
	}
	if s.target() <= 0 {
		return 0, spaceUnreachable
	}
	if most := s.stored - pending - (s.most - s.most/shrinkShare); lacking > most {
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
	r.space.observe(r.now(), free, totals.StoredSize+perNar*totals.StoredNars)
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
		r.log.Warn("less than the minimum is free on the file system of the storage: imports and mirroring are refused", "free", r.space.free, "minimum", r.space.minimum)
	} else {
		r.log.Info("the minimum is free again on the file system of the storage", "free", r.space.free, "minimum", r.space.minimum)
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
	return text
}

// freeBytes is for the metrics.
func (r *Remover) freeBytes() float64 {
	free, _, err := r.storage.FreeSpace()
	if err != nil {
		return math.NaN()
	}
	return float64(free)
}
