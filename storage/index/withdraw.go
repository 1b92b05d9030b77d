package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
)

// Withdraw hides the item from clients, and adds a removal to the recent changes. Its
// row and its files stay for clients that hold its narinfo, until the time from which on
// it may be deleted, which is recorded: see [Tx.Expiry]. Putting the item again takes
// the withdrawal back. It returns false for an item that was withdrawn before; then its
// times stay.
func (tx *Tx) Withdraw(hash narinfo.PathHash, at time.Time) (bool, error) {
	return tx.WithdrawAs(hash, at, at)
}

// WithdrawAs is [Tx.Withdraw] with another time in the recent changes: that at
// which it was done elsewhere.
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

// WithdrawDamaged is [Tx.WithdrawAs] for a mirrored item that is damaged: it stays hidden
// when it is repaired. The removal is logged if storePath isn't empty. It returns false if
// there is nothing to withdraw.
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

// Restore takes the withdrawal of an item back: clients are told of it again,
// and it goes to the recent changes as an addition. It returns false for an item
// that was not withdrawn.
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

// milliseconds rounds a time up to those of the database.
func milliseconds(t time.Time) int64 { return t.Add(time.Millisecond - 1).UnixMilli() }

// Postpone sets the time of a withdrawal to a later one, when the withdrawal was slow to
// take effect.
func (tx *Tx) Postpone(hash narinfo.PathHash, at time.Time) error {
	due, err := tx.Expiry(Narinfos, at.Add(answersKept))
	if err != nil {
		return err
	}
	return tx.conn.exec(`UPDATE narinfos SET withdrawn_at = ?, delete_after = max(coalesce(delete_after, 0), ?)
		WHERE withdrawn_at < ? AND id = (SELECT id FROM items WHERE key = ?) AND hash = ?`,
		at.UnixMilli(), milliseconds(due), at.UnixMilli(), keyOf(hash), hash[:])
}

// DeletableItems returns items that are not damaged, were withdrawn, and may be deleted at the
// given time, the earliest first. Those of before the clock was set are not due until
// [Index.BoundTimes] has set their times.
func (x *Index) DeletableItems(ctx context.Context, now time.Time, limit int) (items []*Item, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		// Without a limit of the rows, among which there may be any number of damaged ones.
		return c.rows(itemColumns+" WHERE n.delete_after BETWEEN ? AND ? AND n.withdrawn_at IS NOT NULL ORDER BY n.delete_after",
			[]driver.Value{stamp.Earliest(now).UnixMilli(), now.UnixMilli()}, func(row []driver.Value) (bool, error) {
				item, err := x.item(row)
				if errors.Is(err, ErrDamaged) {
					return true, ctx.Err() // its files can't be told
				}
				items = append(items, item)
				return len(items) < limit, err
			})
	})
	if err != nil {
		return nil, describe("list what was withdrawn in "+x.path, err)
	}
	return items, nil
}

// WithdrawnUsage is what the stored files of withdrawn items take of a disk.
type WithdrawnUsage struct {
	// Size is about that, in bytes: their lengths, in blocks of 4 KiB for each item.
	Size int64
	// First and Last are from when on the first and the last of the items that have
	// files may be deleted; zero where there are none.
	First, Last time.Time
}

// WithdrawnStored sums up the stored files of items that were withdrawn.
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
		return WithdrawnUsage{}, describe("sum what was withdrawn in "+x.path, err)
	}
	return usage, nil
}

// WithdrawnCount is the number of items that were withdrawn. A time of 0 is damage, see
// withdrawnAt.
func (x *Index) WithdrawnCount(ctx context.Context) (count int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		count, err = c.integer("SELECT count(*) FROM narinfos WHERE withdrawn_at > 0")
		return err
	})
	if err != nil {
		return 0, describe("count what was withdrawn in "+x.path, err)
	}
	return count, nil
}
