package index

import (
	"context"
	"database/sql/driver"
	"math/rand/v2"
)

// sampleSpan limits how many rows Sample reads to find an item with stored files.
const sampleSpan = 12_500

const sampleItems = itemColumns + " WHERE i.id > ? AND i.id <= ? AND (i.stored_files != 0 OR ?) AND n.withdrawn_at IS NULL ORDER BY i.id"

// Sample returns up to n random items that are not withdrawn. With stored, it returns only
// items with stored files, and fewer or none if these are very rare. The error is a
// [Damage] if all items that it read are damaged.
func (x *Index) Sample(ctx context.Context, n int, stored bool) (items []*Item, err error) {
	unstored := int64(1)
	if stored {
		unstored = 0
	}
	err = x.readers.do(ctx, func(c *connection) error {
		items = nil
		row, err := c.first("SELECT (SELECT min(id) FROM items), (SELECT max(id) FROM items)")
		if err != nil || row[0] == nil {
			return err
		}
		first, last := number(row[0]), number(row[1])
		var damage error
		taken := make(map[int64]bool, n)
		from := func(position int64) (found *Item, err error) {
			err = c.rows(sampleItems, []driver.Value{position - 1, position - 1 + sampleSpan, unstored}, func(row []driver.Value) (bool, error) {
				if taken[number(row[0])] {
					return true, nil
				}
				item, itemErr := x.item(row)
				if itemErr != nil {
					damage = itemErr
					return true, nil
				}
				found = item
				return false, nil
			})
			return found, err
		}
		for range n {
			// The first item after a random position, which may be in a gap of removed
			// rows, or else the first of all.
			position, err := c.integer("SELECT coalesce(min(id), 0) FROM items WHERE id >= ?", first+rand.Int64N(last-first+1))
			if err != nil {
				return err
			}
			item, err := from(position)
			if item == nil && err == nil {
				item, err = from(first)
			}
			if err != nil {
				return err
			}
			if item == nil {
				break // other positions would hardly have one
			}
			taken[item.id] = true
			items = append(items, item)
		}
		if len(items) == 0 {
			return damage
		}
		return nil
	})
	if err != nil {
		return nil, describe("read some items of "+x.path, err)
	}
	return items, nil
}

const newestItems = itemColumns + " WHERE n.withdrawn_at IS NULL AND n.lost_at IS NULL ORDER BY i.id DESC LIMIT ?"

// Newest returns up to n items that were added last and have narinfos that clients
// can get, without damaged ones.
func (x *Index) Newest(ctx context.Context, n int) (items []*Item, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		items = nil
		return c.rows(newestItems, []driver.Value{int64(n)}, func(row []driver.Value) (bool, error) {
			if item, err := x.item(row); err == nil {
				items = append(items, item)
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, describe("read the newest items of "+x.path, err)
	}
	return items, nil
}
