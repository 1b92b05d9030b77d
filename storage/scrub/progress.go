package scrub

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"nar-herder/internal/linger"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// verified is an item whose stored files were all good at a time.
type verified struct {
	row *index.Item
	at  time.Time
}

// flush records the verified items, except those that have changed since they were read. It
// also does when the context has just ended.
func (s *Scrubber) flush(ctx context.Context) error {
	if len(s.pending) == 0 {
		s.flushed = s.now()
		return nil
	}
	ctx, cancel := linger.Context(ctx, linger.Second)
	defer cancel()
	err := s.index.Update(ctx, func(tx *index.Tx) error {
		for _, v := range s.pending {
			row, err := tx.Item(v.row.Hash)
			switch {
			case errors.Is(err, storage.ErrNotFound), errors.Is(err, index.ErrDamaged):
				continue
			case err != nil:
				return err
			case row.Stored != v.row.Stored || !row.VerifiedAt.Equal(v.row.VerifiedAt) || !bytes.Equal(row.Text, v.row.Text):
				continue
			}
			if err := tx.SetVerified(v.row.Hash, v.at); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("record which nars were verified: %w", err)
	}
	s.pending, s.flushed = s.pending[:0], s.now()
	return nil
}

// speedOver is the time over which the speed is compared with the necessary one.
const speedOver = time.Hour

// speed is what was read since a time, without any rest.
type speed struct {
	since time.Time
	bytes int64
}

// note compares the speed with the one that verifies everything within the interval.
func (s *Scrubber) note(totals index.Totals) {
	now := s.now()
	took := now.Sub(s.speed.since)
	switch {
	case s.speed.since.IsZero() || took < 0:
		s.speed = speed{since: now}
		return
	case took < speedOver:
		return
	}
	read, needed := float64(s.speed.bytes)/took.Seconds(), float64(totals.StoredSize)/s.options.Interval.Seconds()
	s.slow = ""
	if read < needed {
		s.slow = fmt.Sprintf("the scrub reads %.1f MB/s and needs %.1f MB/s to verify all nars within --scrub-interval: give a longer one", read/1e6, needed/1e6)
	}
	s.speed = speed{since: now}
}
