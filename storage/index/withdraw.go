package index

import (
	"context"
	"database/sql/driver"
	"time"

	"nar-herder/narinfo"
)

// Withdraw has clients no longer be told of the item, which goes to the recent
// changes as a removal. Its row and its files stay for those who hold its
// narinfo; [Tx.Remove] is to follow when nobody can any more. Putting the item
// again takes it back. It returns false for an item that was withdrawn before;
// then that time stays.
func (tx *Tx) Withdraw(hash narinfo.PathHash, at time.Time) (bool, error) {
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
	return true, tx.log(Removed, at, hash, n.StorePath.String())
}

// WithdrawnItems returns items that were withdrawn at the given time or before,
// the earliest first.
func (x *Index) WithdrawnItems(ctx context.Context, until time.Time, limit int) (items []*Item, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows(itemColumns+" WHERE n.withdrawn_at <= ? ORDER BY n.withdrawn_at LIMIT ?",
			[]driver.Value{until.UnixMilli(), int64(limit)}, func(row []driver.Value) (bool, error) {
				item, err := x.item(row)
				items = append(items, item)
				return true, err
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
