package index

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"slices"

	"nar-herder/narinfo"
)

// ReferrersBefore returns the newest items that refer to the path and have a smaller
// [Item.Position] than before; 0 means any. It leaves out the item itself, and items with
// narinfos that are damaged or that clients can't get. It reads hardly more than limit rows,
// however many items refer to the path. The last item's position is the next page's before. more
// is true if others may follow.
func (x *Index) ReferrersBefore(ctx context.Context, hash narinfo.PathHash, before int64, limit int) (items []Named, more bool, err error) {
	target := keyOf(hash)
	before = cmp.Or(before, math.MaxInt64)
	err = x.readers.do(ctx, func(c *connection) (err error) {
		// Use one snapshot: merges delete runs.
		if err := c.exec("BEGIN"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.exec("COMMIT")) }()
		for {
			if err := ctx.Err(); err != nil {
				return err // former references can be many
			}
			ids, err := c.referrersBefore(target, before, limit+1)
			if err != nil {
				return err
			}
			for _, id := range ids {
				if more = len(items) == limit; more {
					return nil
				}
				before = id
				if items, err = x.appendReferrer(c, items, id, hash); err != nil {
					return err
				}
			}
			if len(ids) <= limit {
				return nil
			}
		}
	})
	if err != nil {
		return nil, false, describe(fmt.Sprintf("read the referrers of %s in %s", hash, x.path), err)
	}
	return items, more, nil
}

// appendReferrer appends the item at a position if it is one for [Index.ReferrersBefore].
func (x *Index) appendReferrer(c *connection, items []Named, id int64, hash narinfo.PathHash) ([]Named, error) {
	row, err := c.first("SELECT id, hash, dictionary, text, checksum, refs FROM narinfos WHERE id = ? AND withdrawn_at IS NULL AND lost_at IS NULL", id)
	if err != nil || row == nil || !refersTo(blob(row[5]), keyOf(hash)) {
		return items, err // a former reference
	}
	if item, ok := x.named(row); ok && item.Hash != hash {
		items = append(items, item)
	}
	return items, nil
}

// referrersBefore returns the largest ids, in descending order and at most limit, of the items
// that refer to the target, or once did, and have smaller ids than before.
func (c *connection) referrersBefore(target, before int64, limit int) (found []int64, err error) {
	var runs []int64
	err = c.rows("SELECT id FROM runs", nil, func(row []driver.Value) (bool, error) {
		runs = append(runs, row[0].(int64))
		return true, nil
	})
	if err != nil {
		return nil, err
	}
	for _, run := range runs {
		inRun := 0
		// A chunk that begins before the target may contain it.
		err := c.rows("SELECT target, referrer, edges FROM referrers WHERE run = ? AND (target, referrer) < (?, ?) ORDER BY target DESC, referrer DESC",
			[]driver.Value{run, target, before}, func(row []driver.Value) (bool, error) {
				first, err := edgeOf(row[0], row[1])
				if err != nil {
					return false, err
				}
				edges, err := unpackEdges(nil, first, blob(row[2]))
				if err != nil {
					return false, err
				}
				for _, e := range edges {
					if e.target == target && e.referrer < before {
						found = append(found, e.referrer)
						inRun++
					}
				}
				return first.target == target && inRun < limit, nil
			})
		if err != nil {
			return nil, err
		}
	}
	slices.SortFunc(found, func(a, b int64) int { return cmp.Compare(b, a) })
	found = slices.Compact(found)
	return found[:min(len(found), limit)], nil
}
