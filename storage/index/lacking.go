package index

import (
	"context"
	"database/sql/driver"
	"errors"
)

// lacksFiles is the condition that files of an item are not stored: none is stored, or a
// file before a stored one is not. Only the text tells how many files there are. Files are
// fetched from the last to the first, so an item with some stored files matches until all
// are stored.
const lacksFiles = "(i.stored_files = 0 OR i.stored_files & (i.stored_files + 1) != 0)"

// Lacking returns up to limit items, not withdrawn and of no upstream, that probably lack
// files in the storage, the newest first. *before starts negative, and each call advances it.
// more is false at the end.
func (x *Index) Lacking(ctx context.Context, before *int64, limit int) (found []*Item, more bool, err error) {
	const query = itemColumns + " WHERE i.id < ? AND i.id >= ? AND n.withdrawn_at IS NULL AND i.origin = 0 AND " + lacksFiles + " ORDER BY i.id DESC LIMIT ?"
	err = x.readers.do(ctx, func(c *connection) error {
		end := *before
		if end < 0 {
			last, err := c.integer("SELECT coalesce(max(id), 0) FROM items")
			if err != nil {
				return err
			}
			end = last + 1
		}
		// Read in steps: a transaction over all rows would block checkpoints.
		begin := max(0, end-scanStep)
		read, seen := 0, int64(0)
		err := c.rows(query, []driver.Value{end, begin, int64(limit)}, func(row []driver.Value) (bool, error) {
			read, seen = read+1, row[0].(int64)
			item, err := x.item(row)
			if errors.Is(err, ErrDamaged) {
				return true, nil // the files it lacks are unknown
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

// CountLacking returns about how many items [Index.Lacking] returns. It reads a few bytes
// of every item.
func (x *Index) CountLacking(ctx context.Context) (count int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		count, err = c.integer("SELECT (SELECT count(*) FROM items i WHERE i.origin = 0 AND " + lacksFiles + ") - (SELECT count(*) FROM items i JOIN narinfos n ON n.id = i.id WHERE n.withdrawn_at IS NOT NULL AND i.origin = 0 AND " + lacksFiles + ")")
		return err
	})
	if err != nil {
		return 0, describe("count the items that lack nars in "+x.path, err)
	}
	return count, nil
}

// CountUnstored returns how many items, not withdrawn, have no nar in the storage. It reads
// a few bytes of every item.
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
