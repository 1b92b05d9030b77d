package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
)

// SetVerified records that the stored files of an item were compared with its NarHash. It is
// not a change: nobody is notified.
func (tx *Tx) SetVerified(hash narinfo.PathHash, at time.Time) error {
	return tx.conn.exec("UPDATE items SET verified_at = ? WHERE key = ? AND stored_files != 0", timeColumn(at), keyOf(hash))
}

// timeColumn converts a time to milliseconds, and the zero time to 0.
func timeColumn(at time.Time) int64 {
	if at.IsZero() {
		return 0
	}
	return at.UnixMilli()
}

// VerificationCursor is a position in the items in the order of their last verification. The
// zero value is before the first item.
type VerificationCursor struct{ at, id int64 }

// VerifiedBefore returns up to limit items with stored files that were last verified before a
// time, the longest unverified first, without withdrawn and damaged items. Each call advances
// the cursor. more is false at the end.
func (x *Index) VerifiedBefore(ctx context.Context, before time.Time, cursor *VerificationCursor, limit int) (found []*Item, more bool, err error) {
	const query = itemColumns + " WHERE i.stored_files != 0 AND (i.verified_at, i.id) > (?, ?) AND i.verified_at < ? ORDER BY i.verified_at, i.id LIMIT ?"
	err = x.readers.do(ctx, func(c *connection) error {
		read := 0
		err := c.rows(query, []driver.Value{cursor.at, cursor.id, before.UnixMilli(), int64(limit)}, func(row []driver.Value) (bool, error) {
			read++
			cursor.id = row[0].(int64)
			cursor.at, _ = row[12].(int64)
			item, err := x.item(row)
			if errors.Is(err, ErrDamaged) {
				return true, nil
			}
			if err == nil && item.WithdrawnAt.IsZero() {
				found = append(found, item)
			}
			return true, err
		})
		more = read == limit
		return err
	})
	if err != nil {
		return nil, false, describe("look for the longest unverified items in "+x.path, err)
	}
	return found, more, nil
}

// Verification sums up when stored items were last verified, without withdrawn ones.
type Verification struct {
	// Never counts the items with a file that was never verified.
	Never int64
	// Oldest is when the longest unverified of the others was verified, or the zero time.
	Oldest time.Time
	// Newest is when the last verified of them was, or the zero time.
	Newest time.Time
}

// Verification returns the sums. It reads a few bytes of each item that was never verified.
func (x *Index) Verification(ctx context.Context) (sums Verification, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		row, err := c.first(`WITH withdrawn AS (SELECT id FROM narinfos WHERE withdrawn_at IS NOT NULL)
			SELECT (SELECT count(*) FROM items WHERE stored_files != 0 AND verified_at <= 0 AND id NOT IN withdrawn),
			(SELECT min(verified_at) FROM items WHERE stored_files != 0 AND verified_at > 0 AND id NOT IN withdrawn),
			(SELECT max(verified_at) FROM items WHERE stored_files != 0 AND id NOT IN withdrawn)`)
		if err != nil {
			return err
		}
		sums.Never = number(row[0])
		if at, ok := row[1].(int64); ok {
			sums.Oldest = time.UnixMilli(at).UTC()
		}
		if at, ok := row[2].(int64); ok && at > 0 {
			sums.Newest = time.UnixMilli(at).UTC()
		}
		return nil
	})
	if err != nil {
		return Verification{}, describe("read when the items of "+x.path+" were verified", err)
	}
	return sums, nil
}

// boundBatch is how many times BoundVerified corrects in one transaction.
const boundBatch = 1000

// BoundVerified makes items count as never verified whose time of verification is in the future
// because the clock was wrong, and returns their number. Otherwise they would not be verified
// again until then. If the first or last added item is in the future too, this clock may be the
// one that is wrong, so the times are kept.
func (x *Index) BoundVerified(ctx context.Context, now time.Time) (bounded int64, err error) {
	latest := now.Add(stamp.Slack).UnixMilli()
	for {
		var some int64
		err = x.readers.do(ctx, func(c *connection) error {
			some, err = c.integer(`SELECT EXISTS (SELECT 1 FROM items WHERE stored_files != 0 AND verified_at > ?1)
				AND (SELECT coalesce(max(added_at), 0) FROM items WHERE id IN ((SELECT min(id) FROM items), (SELECT max(id) FROM items))) <= ?1`, latest)
			return err
		})
		if err != nil {
			return bounded, describe("look for times in the future in "+x.path, err)
		}
		if some == 0 {
			return bounded, nil
		}
		err = x.Update(ctx, func(tx *Tx) error {
			err := tx.conn.exec("UPDATE items SET verified_at = 0 WHERE id IN (SELECT id FROM items WHERE stored_files != 0 AND verified_at > ? LIMIT ?)", latest, int64(boundBatch))
			if err == nil {
				some, err = tx.conn.integer("SELECT changes()")
			}
			return err
		})
		if err != nil {
			return bounded, err
		}
		bounded += some
	}
}
