package index

import "context"

// trimStep is how many changes a transaction of [Index.TrimChanges] deletes: so
// few that nobody waits for it longer than for an import.
const trimStep = 2000

// TrimChanges deletes the oldest changes of the log, and returns how many: those up
// to the one with the id upTo, and none of the newest that concern mirrors, as many
// as keep. What is left is whole from its first change on. It takes several
// transactions; when one fails, the others hold.
//
// How long a change has been there is not for its time to say: one that was made
// elsewhere may be years old when it comes.
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
	// With fewer than that, all stay.
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
