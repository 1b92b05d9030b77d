package index

import (
	"context"
	"database/sql/driver"
	"math/rand/v2"
)

// sampleSpan bounds how many rows Sample reads to find items with stored files.
const sampleSpan = 100_000

const sampleItems = itemColumns + " WHERE i.id > ? AND i.id <= ? AND (i.stored_files != 0 OR ?) AND n.withdrawn_at IS NULL ORDER BY i.id LIMIT ?"

// Sample returns up to n neighbouring items at random, without withdrawn ones; with
// stored, only items that have files in the storage, and none where these are very rare.
// The error is a [Damage] if all items that were read are damaged.
func (x *Index) Sample(ctx context.Context, n int, stored bool) (items []*Item, err error) {
	unstored := int64(1)
	if stored {
		unstored = 0
	}
	err = x.readers.do(ctx, func(c *connection) error {
		items = nil
		var damage error
		last, err := c.first("SELECT max(id) FROM items")
		if err != nil {
			return err
		}
		// From the beginning, if there are none behind the random place.
		for _, after := range []int64{rand.Int64N(max(number(last[0]), 1)), 0} {
			err := c.rows(sampleItems, []driver.Value{after, after + sampleSpan, unstored, int64(n)}, func(row []driver.Value) (bool, error) {
				item, err := x.item(row)
				if err != nil {
					damage = err
					return true, nil
				}
				items = append(items, item)
				return true, nil
			})
			if err != nil || len(items) > 0 {
				return err
			}
		}
		return damage
	})
	if err != nil {
		return nil, describe("read some items of "+x.path, err)
	}
	return items, nil
}
