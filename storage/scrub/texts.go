package scrub

import (
	"context"
	"fmt"
	"time"

	"nar-herder/internal/pace"
)

const (
	// textStep is how many narinfos are read between two pauses of textPause: 2,000 a second.
	textStep  = 500
	textPause = 250 * time.Millisecond
)

// texts checks the texts in the index, once per interval and after each start.
func (s *Scrubber) texts(ctx context.Context) error {
	now := s.now()
	if since := now.Sub(s.textsAt); !s.textsAt.IsZero() && since >= 0 && since < s.options.Interval {
		return nil
	}
	totals, err := s.index.Totals(ctx)
	if err != nil {
		return err
	}
	scanned, unrepaired := 0, int64(0)
	looked := func() {
		if scanned++; scanned%textStep == 0 {
			_ = pace.Sleep(ctx, s.textPause) // the scan ends with the context
		}
	}
	for finding, err := range s.checker.CheckIndex(ctx, looked) {
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("check the texts in the index: %w", err)
		}
		done, err := s.found(ctx, finding, nil, totals.Items)
		if err != nil {
			return err
		}
		if !done {
			unrepaired++
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	s.textsAt = now
	s.update(ctx, func(now *state) { now.texts = unrepaired })
	return nil
}
