package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
)

// Withdraw has clients no longer be told of the item, which goes to the recent
// changes as a removal. Its row and its files stay for those who hold its
// narinfo; [Tx.Remove] is to follow when nobody can any more. Putting the item
// again takes it back. It returns false for an item that was withdrawn before;
// then that time stays.
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
	if err := tx.conn.exec("UPDATE narinfos SET withdrawn_at = ? WHERE id = ?", at.UnixMilli(), item.id); err != nil {
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
	err = errors.Join(
		tx.conn.exec("UPDATE narinfos SET withdrawn_at = ? WHERE id = ?", at.UnixMilli(), damage.id),
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
	if err := tx.conn.exec("UPDATE narinfos SET withdrawn_at = NULL WHERE id = ?", item.id); err != nil {
		return false, err
	}
	return true, tx.log(Added, at, hash, nil)
}

// Postpone has the time of a withdrawn item be a later one. It is for one whose
// withdrawal took its time to be seen.
func (tx *Tx) Postpone(hash narinfo.PathHash, at time.Time) error {
	return tx.conn.exec("UPDATE narinfos SET withdrawn_at = ? WHERE withdrawn_at < ? AND id = (SELECT id FROM items WHERE key = ?) AND hash = ?",
		at.UnixMilli(), at.UnixMilli(), keyOf(hash), hash[:])
}

// WithdrawnItems returns items that are not damaged and were withdrawn at the given time or before,
// the earliest first. Those that were withdrawn before the clock was set are not due before
// [Index.BoundTimes] has set their times.
func (x *Index) WithdrawnItems(ctx context.Context, until time.Time, limit int) (items []*Item, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		// Without a limit of the rows, among which there may be any number of damaged ones.
		return c.rows(itemColumns+" WHERE n.withdrawn_at BETWEEN ? AND ? ORDER BY n.withdrawn_at",
			[]driver.Value{stamp.Earliest(until).UnixMilli(), until.UnixMilli()}, func(row []driver.Value) (bool, error) {
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

// WithdrawnStored is about what the stored files of items that were withdrawn
// take of a disk, in bytes: their lengths, in blocks of 4 KiB for each item.
func (x *Index) WithdrawnStored(ctx context.Context) (size int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		size, err = c.integer("SELECT coalesce(sum((i.stored_size + 4095) / 4096 * 4096), 0) FROM narinfos n JOIN items i ON i.id = n.id WHERE n.withdrawn_at IS NOT NULL")
		return err
	})
	if err != nil {
		return 0, describe("sum what was withdrawn in "+x.path, err)
	}
	return size, nil
}

// WithdrawnCount is the number of items that were withdrawn.
func (x *Index) WithdrawnCount(ctx context.Context) (count int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		count, err = c.integer("SELECT count(*) FROM narinfos WHERE withdrawn_at IS NOT NULL")
		return err
	})
	if err != nil {
		return 0, describe("count what was withdrawn in "+x.path, err)
	}
	return count, nil
}

// BoundTimes sets the times of withdrawals, of items and of cached files, to now where
// they are ahead, as after the clock was: they would not be due for as long. So are the
// times of cached files' last uses. Where the first or the last item that came is ahead too,
// it may be this clock that is behind, and all stay. Times from before the clock was set
// are set to now as well. It returns how many there were.
func (x *Index) BoundTimes(ctx context.Context, now time.Time) (bounded int64, err error) {
	statements := []struct{ table, column string }{{"narinfos", "withdrawn_at"}, {"cached_files", "withdrawn_at"}, {"cached_files", "last_used"}}
	ahead, early := now.Add(stamp.Slack).UnixMilli(), stamp.Earliest(now).UnixMilli()
	// Zero is damage in one column, and never used in the other.
	const isWrong = " (%[1]s > ? OR %[1]s > 0 AND %[1]s < ?)"
	// Most times there are none, which needs no lock.
	var some int64
	err = x.readers.do(ctx, func(c *connection) error {
		for _, s := range statements {
			row, err := c.first("SELECT EXISTS (SELECT 1 FROM "+s.table+" WHERE"+fmt.Sprintf(isWrong, s.column)+")", ahead, early)
			if err != nil {
				return err
			}
			some += number(row[0])
		}
		if some == 0 {
			return nil
		}
		// By arrival, as some between them may have come while the clock was ahead; and the
		// first as well, as the last may have come while it was behind.
		latest, err := c.integer("SELECT coalesce(max(added_at), 0) FROM items WHERE id IN ((SELECT min(id) FROM items), (SELECT max(id) FROM items))")
		if latest > ahead {
			ahead = math.MaxInt64
		}
		return err
	})
	if err != nil {
		return 0, describe("look for times that are ahead in "+x.path, err)
	}
	if some == 0 {
		return 0, nil
	}
	err = x.Reclaim(ctx, func(tx *Tx) error {
		bounded = 0
		for _, s := range statements {
			where := " WHERE" + fmt.Sprintf(isWrong, s.column)
			n, err := tx.conn.integer("SELECT count(*) FROM "+s.table+where, ahead, early)
			if err == nil && n > 0 {
				err = tx.conn.exec("UPDATE "+s.table+" SET "+s.column+" = ?"+where, now.UnixMilli(), ahead, early)
			}
			if err != nil {
				return err
			}
			bounded += n
		}
		return nil
	})
	return bounded, err
}
