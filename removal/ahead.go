package removal

import (
	"context"
	"fmt"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/removal/criteria"
	"nar-herder/storage/index"
)

// Times of items and of their last uses may be ahead: the clock was ahead when they were
// written, or is behind now. It is unknown which, so they stay in the index, and count as the
// time when a pass first found any. That time is stored, so that unused nars still age. Times
// that were written before the clock was set are treated alike.
const aheadSetting = "removal.ahead_since"

func (r *Remover) readAhead(ctx context.Context) error {
	text, err := r.index.Setting(ctx, aheadSetting)
	if err != nil || text == "" {
		r.aheadSince = time.Time{}
		return err
	}
	if r.aheadSince, err = time.Parse(time.RFC3339, text); err != nil {
		return fmt.Errorf("since when times are ahead, in the database: %w", err)
	}
	return nil
}

// noteAhead stores the time when times ahead were first found.
func (r *Remover) noteAhead(ctx context.Context, f *criteria.Facts) error {
	now := r.now()
	for _, t := range []time.Time{f.Added, f.LastUsed, f.CountedSince} {
		r.sawAhead = r.sawAhead || stamp.IsWrong(t, now)
	}
	if f.AheadSince = r.aheadSince; !r.sawAhead || !f.AheadSince.IsZero() && !stamp.IsWrong(f.AheadSince, now) {
		return nil
	}
	r.aheadSince, f.AheadSince = now, now
	if r.plan != nil {
		return nil
	}
	r.log.Warn("times in the database are ahead of this machine's clock, which is behind, was ahead, or was not set when they were written: they count as now")
	return r.setAhead(ctx, now.UTC().Format(time.RFC3339))
}

// forgetAhead is called at the end of a pass. If that found no time ahead, the clock is right.
func (r *Remover) forgetAhead(ctx context.Context) error {
	saw := r.sawAhead
	if r.sawAhead = false; saw || r.aheadSince.IsZero() || r.plan != nil {
		return nil
	}
	r.aheadSince = time.Time{}
	return r.setAhead(ctx, "")
}

func (r *Remover) setAhead(ctx context.Context, text string) error {
	return r.index.Reclaim(ctx, func(tx *index.Tx) error { return tx.SetSetting(aheadSetting, text) })
}
