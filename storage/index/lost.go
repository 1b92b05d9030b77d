package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"time"

	"nar-herder/narinfo"
)

// ErrLost is the [ErrNotFound] of an item without a stored nar that [Tx.SetLost] has hidden.
var ErrLost = fmt.Errorf("%w: its nars are lost", ErrNotFound)

// SetLost hides the narinfo of an item without stored files from clients until a file of it
// is stored. It is not a removal: mirrors keep the item and its nars.
func (tx *Tx) SetLost(hash narinfo.PathHash, at time.Time) error {
	item, err := tx.Item(hash)
	if err != nil {
		return err
	}
	if item.Stored != 0 {
		return fmt.Errorf("%s still has stored files", hash)
	}
	if err := tx.conn.exec("UPDATE narinfos SET lost_at = ? WHERE id = ?", at.UnixMilli(), item.id); err != nil {
		return err
	}
	return tx.log(AnnouncementChanged, at, hash, nil)
}

// foundAgain undoes SetLost when files of an item are stored, or when it has another nar.
// item is its row before.
func (tx *Tx) foundAgain(item *Item, stored uint64, isOther bool) error {
	if item.Stored != 0 || stored == 0 && !isOther {
		return nil
	}
	lost, err := tx.conn.integer("SELECT count(*) FROM narinfos WHERE id = ? AND lost_at IS NOT NULL", item.id)
	if err != nil || lost == 0 {
		return err
	}
	if err := tx.conn.exec("UPDATE narinfos SET lost_at = NULL WHERE id = ?", item.id); err != nil {
		return err
	}
	return tx.log(AnnouncementChanged, time.Now(), item.Hash, nil)
}

// LostCursor is a position in the lost items. The zero value is before the first item.
type LostCursor struct{ at, id int64 }

// Lost returns up to limit items that [Tx.SetLost] has hidden, without withdrawn and damaged
// ones, the first lost first. Each call advances the cursor. more is false at the end.
func (x *Index) Lost(ctx context.Context, cursor *LostCursor, limit int) (found []*Item, more bool, err error) {
	// itemColumns has no lost_at.
	const query = "SELECT lost_at, id FROM narinfos WHERE lost_at IS NOT NULL AND (lost_at, id) > (?, ?) ORDER BY lost_at, id LIMIT ?"
	err = x.readers.do(ctx, func(c *connection) error {
		if *cursor == (LostCursor{}) {
			*cursor = LostCursor{math.MinInt64, math.MinInt64}
		}
		var ids []int64
		err := c.rows(query, []driver.Value{cursor.at, cursor.id, int64(limit)}, func(row []driver.Value) (bool, error) {
			cursor.at, cursor.id = number(row[0]), number(row[1])
			ids = append(ids, cursor.id)
			return true, nil
		})
		more = len(ids) == limit
		for _, id := range ids {
			if err != nil {
				return err
			}
			err = c.rows(itemColumns+" WHERE i.id = ?", []driver.Value{id}, func(row []driver.Value) (bool, error) {
				item, err := x.item(row)
				if errors.Is(err, ErrDamaged) {
					return true, nil
				}
				if err == nil && item.WithdrawnAt.IsZero() && item.Stored == 0 {
					found = append(found, item)
				}
				return true, err
			})
		}
		return err
	})
	if err != nil {
		return nil, false, describe("list the items with lost nars in "+x.path, err)
	}
	return found, more, nil
}

// CountLost returns how many items [Index.Lost] returns, including withdrawn and damaged ones.
func (x *Index) CountLost(ctx context.Context) (count int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		count, err = c.integer("SELECT count(*) FROM narinfos WHERE lost_at IS NOT NULL")
		return err
	})
	if err != nil {
		return 0, describe("count the items with lost nars in "+x.path, err)
	}
	return count, nil
}
