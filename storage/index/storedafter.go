package index

import (
	"context"
	"database/sql/driver"
)

// StoredAfter skips some of the items with stored files behind a place, in the order of
// their places, and returns the next; nil for none. The error is a [Damage] if that one is
// damaged.
func (x *Index) StoredAfter(ctx context.Context, place, skip int64) (item *Item, err error) {
	// The inner query reads no texts.
	const query = itemColumns + " WHERE i.id = (SELECT id FROM items WHERE id > ? AND stored_files != 0 ORDER BY id LIMIT 1 OFFSET ?)"
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows(query, []driver.Value{place, skip}, func(row []driver.Value) (_ bool, err error) {
			item, err = x.item(row)
			return false, err
		})
	})
	if err != nil {
		return nil, describe("look for stored items in "+x.path, err)
	}
	return item, nil
}
