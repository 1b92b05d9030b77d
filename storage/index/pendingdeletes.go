package index

import (
	"context"
	"database/sql/driver"
)

// AddPendingDeletes records files to delete after the transaction has committed, since no
// row claims them then.
func (tx *Tx) AddPendingDeletes(names []string) error {
	for _, name := range names {
		if err := tx.conn.exec("INSERT INTO leftovers VALUES (?) ON CONFLICT DO NOTHING", name); err != nil {
			return err
		}
	}
	return nil
}

// RemovePendingDeletes removes the records of files that were deleted or are claimed again.
func (tx *Tx) RemovePendingDeletes(names []string) error {
	for _, name := range names {
		if err := tx.conn.exec("DELETE FROM leftovers WHERE name = ?", name); err != nil {
			return err
		}
	}
	return nil
}

// PendingDeletes returns the names of up to limit pending deletes after the given name,
// sorted.
func (x *Index) PendingDeletes(ctx context.Context, after string, limit int) (names []string, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows("SELECT name FROM leftovers WHERE name > ? ORDER BY name LIMIT ?", []driver.Value{after, int64(limit)}, func(row []driver.Value) (bool, error) {
			if name, err := textValue(row[0]); err == nil {
				names = append(names, name)
			}
			return true, nil
		})
	})
	if err != nil {
		return nil, describe("list the pending deletes in "+x.path, err)
	}
	return names, nil
}
