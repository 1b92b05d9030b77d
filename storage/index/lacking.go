package index

import (
	"context"
	"database/sql/driver"
	"errors"
)

// lacksFiles is the condition that files of an item are not stored: none is, or one
// that comes before a stored one is not. How many files a narinfo names only its
// text tells; who stores them one by one begins with the last, so that an item
// that has some of them matches until it has all.
const lacksFiles = "(i.stored_files = 0 OR i.stored_files & (i.stored_files + 1) != 0)"

// Lacking returns items that clients are told of and of which, it seems, not all
// files are in the storage: the latest first, limit of them at most. *before is
// negative to begin with; each call moves it on. more is false when there are
// none left.
func (x *Index) Lacking(ctx context.Context, before *int64, limit int) (found []*Item, more bool, err error) {
	const query = itemColumns + " WHERE i.id < ? AND i.id >= ? AND n.withdrawn_at IS NULL AND " + lacksFiles + " ORDER BY i.id DESC LIMIT ?"
	err = x.readers.do(ctx, func(c *connection) error {
		end := *before
		if end < 0 {
			last, err := c.integer("SELECT coalesce(max(id), 0) FROM items")
			if err != nil {
				return err
			}
			end = last + 1
		}
		// In steps: a transaction over all rows would keep the log from being
		// folded back.
		begin := max(0, end-scanStep)
		read, seen := 0, int64(0)
		err := c.rows(query, []driver.Value{end, begin, int64(limit)}, func(row []driver.Value) (bool, error) {
			read, seen = read+1, row[0].(int64)
			item, err := x.item(row)
			if errors.Is(err, ErrDamaged) {
				return true, nil // which files it lacksFiles can't be known
			}
			found = append(found, item)
			return true, err
		})
		if err != nil {
			return err
		}
		if read == limit {
			begin = seen
		}
		*before, more = begin, begin > 0
		return nil
	})
	if err != nil {
		return nil, false, describe("look for items that lack nars in "+x.path, err)
	}
	return found, more, nil
}

// CountLacking is about how many items [Index.Lacking] returns. It reads a few
// bytes of every item.
func (x *Index) CountLacking(ctx context.Context) (count int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		count, err = c.integer("SELECT (SELECT count(*) FROM items i WHERE " + lacksFiles + ") - (SELECT count(*) FROM items i JOIN narinfos n ON n.id = i.id WHERE n.withdrawn_at IS NOT NULL AND " + lacksFiles + ")")
		return err
	})
	if err != nil {
		return 0, describe("count the items that lack nars in "+x.path, err)
	}
	return count, nil
}

// CountUnstored is how many items that clients are told of have no nar in the storage. It
// reads a few bytes of every item.
func (x *Index) CountUnstored(ctx context.Context) (count int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		count, err = c.integer("SELECT (SELECT count(*) FROM items WHERE stored_files = 0) - (SELECT count(*) FROM narinfos n JOIN items i ON i.id = n.id WHERE n.withdrawn_at IS NOT NULL AND i.stored_files = 0)")
		return err
	})
	if err != nil {
		return 0, describe("count the items without nars in "+x.path, err)
	}
	return count, nil
}
