package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
)

// Withdraw hides the item from clients, and adds a removal to the recent changes. Its row
// and its files stay for clients that hold its narinfo, until the time in delete_after; see
// [Tx.Expiry]. [Tx.Put] undoes a withdrawal. If the item was withdrawn before, Withdraw
// returns false and changes nothing.
func (tx *Tx) Withdraw(hash narinfo.PathHash, at time.Time) (bool, error) {
	return tx.WithdrawAs(hash, at, at)
}

// WithdrawAs is [Tx.Withdraw] with a different time in the recent changes: that of the
// removal at another instance.
func (tx *Tx) WithdrawAs(hash narinfo.PathHash, at, logged time.Time) (bool, error) {
	item, err := tx.Item(hash)
	if err != nil {
		return false, err
	}
	if !item.WithdrawnAt.IsZero() {
		return false, nil
	}
	n, err := narinfo.Parse(item.Text)
	if err != nil {
		return false, err
	}
	due, err := tx.Expiry(Narinfos, at.Add(answersKept))
	if err != nil {
		return false, err
	}
	if err := tx.conn.exec("UPDATE narinfos SET withdrawn_at = ?, delete_after = ? WHERE id = ?", at.UnixMilli(), milliseconds(due), item.id); err != nil {
		return false, err
	}
	return true, tx.log(Removed, logged, hash, n.StorePath.String())
}

// WithdrawDamaged is [Tx.WithdrawAs] for a damaged mirrored item, which stays hidden after
// a repair. It logs the removal if storePath isn't empty. It returns false if there is
// nothing to withdraw.
func (tx *Tx) WithdrawDamaged(damage *Damage, storePath string, at, logged time.Time) (bool, error) {
	count, err := tx.conn.integer("SELECT count(*) FROM items i JOIN narinfos n ON n.id = i.id WHERE i.id = ? AND i.mirrored = 1 AND coalesce(n.withdrawn_at, 0) <= 0", damage.id)
	if err != nil || count == 0 {
		return false, err
	}
	due, err := tx.Expiry(Narinfos, at.Add(answersKept))
	if err != nil {
		return false, err
	}
	err = errors.Join(
		tx.conn.exec("UPDATE narinfos SET withdrawn_at = ?, delete_after = ? WHERE id = ?", at.UnixMilli(), milliseconds(due), damage.id),
		tx.conn.exec("UPDATE items SET mirrored = 0 WHERE id = ?", damage.id))
	if err == nil && storePath != "" {
		err = tx.log(Removed, logged, damage.Hash, storePath)
	}
	return true, err
}

// Restore undoes the withdrawal of an item, and adds an addition to the recent changes. It
// returns false if the item was not withdrawn.
func (tx *Tx) Restore(hash narinfo.PathHash, at time.Time) (bool, error) {
	item, err := tx.Item(hash)
	if err != nil {
		return false, err
	}
	if item.WithdrawnAt.IsZero() {
		return false, nil
	}
	if err := tx.conn.exec("UPDATE narinfos SET withdrawn_at = NULL, delete_after = NULL WHERE id = ?", item.id); err != nil {
		return false, err
	}
	return true, tx.log(Added, at, hash, nil)
}

// milliseconds converts a time for the database, rounded up.
func milliseconds(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }

// Postpone moves the time of a withdrawal to a later one, because the withdrawal took
// effect late.
func (tx *Tx) Postpone(hash narinfo.PathHash, at time.Time) error {
	due, err := tx.Expiry(Narinfos, at.Add(answersKept))
	if err != nil {
		return err
	}
	return tx.conn.exec(`UPDATE narinfos SET withdrawn_at = ?, delete_after = max(coalesce(delete_after, 0), ?)
		WHERE withdrawn_at < ? AND id = (SELECT id FROM items WHERE key = ?) AND hash = ?`,
		at.UnixMilli(), milliseconds(due), at.UnixMilli(), keyOf(hash), hash[:])
}

// DeletableItems returns withdrawn, undamaged items that may be deleted at the given time,
// the earliest first. It skips times from before the clock was set until [Index.BoundTimes]
// corrects them.
func (x *Index) DeletableItems(ctx context.Context, now time.Time, limit int) (items []*Item, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		// No LIMIT, since any number of the rows may be damaged.
		return c.rows(itemColumns+" WHERE n.delete_after BETWEEN ? AND ? AND n.withdrawn_at IS NOT NULL ORDER BY n.delete_after",
			[]driver.Value{stamp.Earliest(now).UnixMilli(), now.UnixMilli()}, func(row []driver.Value) (bool, error) {
				item, err := x.item(row)
				if errors.Is(err, ErrDamaged) {
					return true, ctx.Err() // its files are unknown
				}
				items = append(items, item)
				return len(items) < limit, err
			})
	})
	if err != nil {
		return nil, describe("list the withdrawn items in "+x.path, err)
	}
	return items, nil
}

// WithdrawnUsage is the disk usage of the stored files of withdrawn items.
type WithdrawnUsage struct {
	// Size is approximate: the lengths in bytes, rounded up to 4 KiB per item.
	Size int64
	// First and Last are when the first and the last of these items may be deleted; zero if
	// there are none.
	First, Last time.Time
}

// WithdrawnStored returns the usage of the stored files of withdrawn items.
func (x *Index) WithdrawnStored(ctx context.Context) (usage WithdrawnUsage, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		row, err := c.first(`SELECT sum((i.stored_size + 4095) / 4096 * 4096), min(n.delete_after), max(n.delete_after)
			FROM narinfos n JOIN items i ON i.id = n.id WHERE n.withdrawn_at IS NOT NULL AND i.stored_size > 0`)
		if err != nil || row == nil || row[0] == nil {
			return err
		}
		usage = WithdrawnUsage{number(row[0]), time.UnixMilli(number(row[1])).UTC(), time.UnixMilli(number(row[2])).UTC()}
		return nil
	})
	if err != nil {
		return WithdrawnUsage{}, describe("sum the withdrawn files in "+x.path, err)
	}
	return usage, nil
}

// WithdrawnCount returns the number of withdrawn items. A time of 0 means damage; see
// withdrawnAt.
func (x *Index) WithdrawnCount(ctx context.Context) (count int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		count, err = c.integer("SELECT count(*) FROM narinfos WHERE withdrawn_at > 0")
		return err
	})
	if err != nil {
		return 0, describe("count the withdrawn items in "+x.path, err)
	}
	return count, nil
}
