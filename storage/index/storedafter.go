package index

import (
	"context"
	"database/sql/driver"
)

// StoredAfter skips some items with stored files after a position and returns the next one,
// or nil. The error is a [Damage] if that item is damaged.
func (x *Index) StoredAfter(ctx context.Context, position, skip int64) (item *Item, err error) {
	// The inner query doesn't read texts.
	const query = itemColumns + " WHERE i.id = (SELECT id FROM items WHERE id > ? AND stored_files != 0 ORDER BY id LIMIT 1 OFFSET ?)"
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows(query, []driver.Value{position, skip}, func(row []driver.Value) (_ bool, err error) {
			item, err = x.item(row)
			return false, err
		})
	})
	if err != nil {
		return nil, describe("look for stored items in "+x.path, err)
	}
	return item, nil
}
