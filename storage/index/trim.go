package index

import "context"

// trimStep is how many changes one transaction of [Index.TrimChanges] deletes: few enough
// not to delay other writers longer than an import does.
const trimStep = 2000

// TrimChanges deletes the oldest changes of the log, up to id upTo, and returns how many.
// It keeps the newest keep changes that concern mirrors. The remaining log has no gaps. It
// runs several transactions; if one fails, the others stay committed.
//
// The time of a change does not tell how long it has been in the log: a change from another
// instance may be years old when it arrives.
func (x *Index) TrimChanges(ctx context.Context, upTo, keep int64) (deleted int64, err error) {
	for {
		var some int64
		err := x.Reclaim(ctx, func(tx *Tx) (err error) {
			some, err = tx.trimChanges(upTo, keep)
			return err
		})
		deleted += some
		if err != nil || some == 0 {
			return deleted, err
		}
	}
}

func (tx *Tx) trimChanges(upTo, keep int64) (int64, error) {
	first, err := tx.conn.integer("SELECT coalesce(min(id), 0) FROM recent_changes")
	if err != nil || first == 0 {
		return 0, err
	}
	last, err := tx.conn.integer(lastChange)
	if err != nil {
		return 0, err
	}
	// If there are fewer, keep all.
	kept, err := tx.conn.integer(`SELECT coalesce((SELECT id FROM recent_changes WHERE kind IN (1, 2)
		ORDER BY id DESC LIMIT 1 OFFSET ?), 0)`, max(keep-1, 0))
	if err != nil {
		return 0, err
	}
	end := min(upTo+1, last+1, first+trimStep)
	if keep > 0 {
		end = min(end, kept)
	}
	if end <= first {
		return 0, nil
	}
	return end - first, tx.conn.exec("DELETE FROM recent_changes WHERE id < ?", end)
}
