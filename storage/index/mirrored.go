package index

import (
	"context"
	"database/sql/driver"
	"time"

	"nar-herder/narinfo"
)

// MirroredCount returns the number of mirrored items that are not withdrawn, and the
// position of the last item of all.
func (x *Index) MirroredCount(ctx context.Context) (count, last int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		if last, err = c.integer("SELECT coalesce(max(id), 0) FROM items"); err != nil {
			return err
		}
		// Two queries, because a join would read the texts.
		withdrawn, err := c.integer("SELECT count(*) FROM narinfos n JOIN items i ON i.id = n.id WHERE n.withdrawn_at IS NOT NULL AND i.mirrored = 1")
		if err != nil {
			return err
		}
		if count, err = c.integer("SELECT count(*) FROM items WHERE mirrored = 1"); err != nil {
			return err
		}
		count -= withdrawn
		return nil
	})
	if err != nil {
		return 0, 0, describe("count the mirrored items in "+x.path, err)
	}
	return count, last, nil
}

// MirroredItem is a mirrored item without its text.
type MirroredItem struct {
	Position int64
	Hash     narinfo.PathHash
	AddedAt  time.Time
}

// MirroredAfter returns the mirrored items, not withdrawn, with positions above after and
// up to until. It reads at most span positions, and returns the position to continue from.
func (x *Index) MirroredAfter(ctx context.Context, after, until int64, span int) (items []MirroredItem, end int64, err error) {
	end = min(until, after+int64(span))
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows(`SELECT i.id, n.hash, i.added_at FROM items i JOIN narinfos n ON n.id = i.id
			WHERE i.id > ? AND i.id <= ? AND i.mirrored = 1 AND n.withdrawn_at IS NULL ORDER BY i.id`, []driver.Value{after, end},
			func(row []driver.Value) (bool, error) {
				hash, err := hashOf(row[1])
				items = append(items, MirroredItem{row[0].(int64), hash, time.UnixMilli(number(row[2])).UTC()})
				return true, err
			})
	})
	if err != nil {
		return nil, 0, describe("list the mirrored items in "+x.path, err)
	}
	return items, end, nil
}
