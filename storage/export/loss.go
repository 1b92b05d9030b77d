package export

import (
	"context"
	"errors"
	"fmt"
)

// ErrLoss means that Delete would remove more than a tenth of the copy.
var ErrLoss = errors.New("nothing was removed: check the options and the storage, and use --accept-loss if this is intended")

// lossShare is the share of the copy that a run may remove: a tenth.
const lossShare = 10

// refuseLoss returns an [ErrLoss] if no item is selected, or if the sweep would remove more
// than a tenth of the narinfos or nars. The usual cause is a mistyped tag, database or
// directory.
func (r *run) refuseLoss(ctx context.Context) error {
	any, err := r.hasAny(ctx)
	if err != nil {
		return err
	}
	if !any {
		return fmt.Errorf("export --delete to %s: no selected item has its nars in the storage: %w", r.tree.name, ErrLoss)
	}
	// Whether a file is stale depends on the rows only, not on the progress of this run.
	dry := *r.Export
	dry.Delete, dry.Swept = false, nil
	count := &run{Export: &dry, tree: r.tree, summary: new(Summary), closure: r.closure}
	if err := count.sweep(ctx); err != nil {
		return err
	}
	if s := count.summary; s.StaleNarinfos*lossShare > count.narinfos || s.StaleNars*lossShare > count.nars {
		return fmt.Errorf("export --delete would remove %d of %d narinfos and %d of %d nars in %s, more than a tenth: %w",
			s.StaleNarinfos, count.narinfos, s.StaleNars, count.nars, r.tree.name, ErrLoss)
	}
	return nil
}

// hasAny reports whether any item is selected and has its nars, by the index.
func (r *run) hasAny(ctx context.Context) (bool, error) {
	for row, err := range r.rowsWanted(ctx) {
		if err != nil {
			return false, fmt.Errorf("export: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return false, err
		}
		names, known, err := r.exportable(ctx, row)
		if err != nil {
			return false, fmt.Errorf("export: %w", err)
		}
		if !known || names != nil {
			return true, nil
		}
	}
	return false, nil
}
