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
		row, err := c.first("SELECT max(id) FROM items")
		if err != nil {
			return err
		}
		last := max(number(row[0]), 1)
		place := rand.Int64N(last)
		// From the beginning, if there are none or the end came first: otherwise, one item
		// at the end would often stand for all.
		for _, span := range [][2]int64{{place, place + sampleSpan}, {0, min(place, sampleSpan)}} {
			err := c.rows(sampleItems, []driver.Value{span[0], span[1], unstored, int64(n - len(items))}, func(row []driver.Value) (bool, error) {
				item, err := x.item(row)
				if err != nil {
					damage = err
					return true, nil
				}
				items = append(items, item)
				return true, nil
			})
			if err != nil || len(items) == n || len(items) > 0 && span[1] < last {
				return err
			}
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
