package index

import (
	"cmp"
	"container/heap"
	"context"
	"database/sql/driver"
	"fmt"
	"math"
	"slices"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
)

// LeastUsed is an item of an upstream with stored files, in the order of their last uses.
type LeastUsed struct {
	Hash narinfo.PathHash
	// At is when a nar of the item was last used or the item was added, whichever is later. It
	// is zero if both times are wrong, see [stamp.IsWrong].
	At time.Time
	// Size is the length of its stored files in bytes.
	Size int64

	id, at int64
}

// LeastUsedQuery selects the items of [Index.LeastRecentlyUsed].
type LeastUsedQuery struct {
	// Origins are the upstreams of the items.
	Origins []int64
	// Kept items are skipped; nil for none.
	Kept *Closure
	// Uses are uses that are not recorded yet.
	Uses map[narinfo.PathHash]time.Time
	Now  time.Time
}

// leastUsed is a heap with the most recent use first.
type leastUsed []LeastUsed

func (h leastUsed) Len() int           { return len(h) }
func (h leastUsed) Less(i, j int) bool { return compareUse(h[i], h[j]) > 0 }
func (h leastUsed) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *leastUsed) Push(x any)        { *h = append(*h, x.(LeastUsed)) }
func (h *leastUsed) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func compareUse(a, b LeastUsed) int {
	return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.id, b.id))
}

// LeastRecentlyUsed returns up to limit items with stored files, the least recently used first.
// It reads a few bytes of every item of the upstreams, in steps. The items may be withdrawn or
// damaged.
func (x *Index) LeastRecentlyUsed(ctx context.Context, query LeastUsedQuery, limit int) (found []LeastUsed, err error) {
	least := make(leastUsed, 0, limit+1)
	uses := make(map[int64]int64, len(query.Uses))
	for hash, at := range query.Uses {
		uses[keyOf(hash)] = at.UnixMilli()
	}
	for _, origin := range query.Origins {
		for cursor, more := int64(0), true; more; {
			if err = ctx.Err(); err == nil {
				err = x.readers.do(ctx, func(c *connection) (err error) {
					more, err = c.leastUsed(&least, uses, &query, origin, &cursor, limit)
					return err
				})
			}
			if err != nil {
				return nil, describe("look for the nars that were not used for longest in "+x.path, err)
			}
		}
	}
	slices.SortFunc(least, compareUse)
	for step := range slices.Chunk(least, listStep) {
		err = x.readers.do(ctx, func(c *connection) error {
			for _, used := range step {
				row, err := c.first("SELECT hash FROM narinfos WHERE id = ?", used.id)
				if err != nil || row == nil {
					return err // removed meanwhile
				}
				if used.Hash, err = hashOf(row[0]); err != nil {
					continue // damaged
				}
				if used.at > 0 {
					used.At = time.UnixMilli(used.at).UTC()
				}
				found = append(found, used)
			}
			return nil
		})
		if err != nil {
			return nil, describe(fmt.Sprintf("look up %d items in %s", len(step), x.path), err)
		}
	}
	return found, nil
}

// usedOrAdded is the time of [LeastUsed.At] in milliseconds, 0 for none. Its four parameters are
// the bounds of right times, twice.
const usedOrAdded = "max(iif(i.added_at BETWEEN ? AND ?, i.added_at, 0), iif(u.last_used BETWEEN ? AND ?, u.last_used, 0))"

// leastUsed reads one step of the items of an upstream.
func (c *connection) leastUsed(least *leastUsed, uses map[int64]int64, query *LeastUsedQuery, origin int64, cursor *int64, limit int) (more bool, err error) {
	// The partial index has the ids of an upstream's items in their order.
	end, err := c.endOfStep(origin, *cursor)
	if err != nil {
		return false, err
	}
	text := "SELECT i.id, i.key, i.stored_size, " + usedOrAdded + ` AS at FROM items i INDEXED BY items_of_upstreams LEFT JOIN uses u ON u.item = i.id
		WHERE i.origin = ? AND i.origin != 0 AND i.id > ? AND i.id <= ? AND i.stored_files != 0
			AND (i.added_at <= ? OR i.added_at > ?) AND at <= ? ORDER BY i.id`
	most := int64(math.MaxInt64)
	if len(*least) == limit {
		most = (*least)[0].at
	}
	earliest, latest := stamp.Earliest(query.Now).UnixMilli(), query.Now.Add(stamp.Slack).UnixMilli()
	// Of an item that was added later, the use is not looked up.
	args := []driver.Value{earliest, latest, earliest, latest, origin, *cursor, end, most, latest, most}
	err = c.rows(text, args, func(row []driver.Value) (bool, error) {
		used := LeastUsed{id: number(row[0]), Size: number(row[2]), at: number(row[3])}
		key := number(row[1])
		if at, ok := uses[key]; ok {
			used.at = at
		}
		if len(*least) == limit && compareUse(used, (*least)[0]) >= 0 || query.Kept.hasKey(key) {
			return true, nil
		}
		if heap.Push(least, used); len(*least) > limit {
			heap.Pop(least)
		}
		return true, nil
	})
	*cursor = end
	return end != math.MaxInt64, err
}

// endOfStep returns the last id of a step over the items of an upstream.
func (c *connection) endOfStep(origin, after int64) (int64, error) {
	return c.integer(`SELECT coalesce((SELECT id FROM items INDEXED BY items_of_upstreams WHERE origin = ? AND origin != 0 AND id > ? ORDER BY id LIMIT 1 OFFSET ?), ?)`,
		origin, after, int64(scanStep-1), int64(math.MaxInt64))
}

// hasKey is [Closure.Has] by the key of an item. The closure may be nil.
func (c *Closure) hasKey(key int64) bool {
	if c == nil {
		return false
	}
	_, has := c.rootOf[key]
	return has
}

// Unrequested returns up to limit items of an upstream that were neither used nor added since a time,
// must not be served without another query since then, see [Item.FreshUntil], and have no tags.
// Withdrawn ones and those in the closure are skipped. *cursor starts at zero, and each call
// advances it. more is false at the end.
func (x *Index) Unrequested(ctx context.Context, origin int64, since time.Time, kept *Closure, cursor *int64, limit int) (found []narinfo.PathHash, more bool, err error) {
	const query = `SELECT i.id, i.key, n.hash FROM items i INDEXED BY items_of_upstreams JOIN narinfos n ON n.id = i.id LEFT JOIN uses u ON u.item = i.id
		WHERE i.origin = ? AND i.origin != 0 AND i.id > ? AND i.id <= ? AND max(i.added_at, coalesce(u.last_used, 0), i.fresh_until) < ?
		AND NOT EXISTS (SELECT 1 FROM item_tags t WHERE t.item = i.id) AND n.withdrawn_at IS NULL ORDER BY i.id`
	err = x.readers.do(ctx, func(c *connection) error {
		end, err := c.endOfStep(origin, *cursor)
		if err != nil {
			return err
		}
		err = c.rows(query, []driver.Value{origin, *cursor, end, since.UnixMilli()}, func(row []driver.Value) (bool, error) {
			if hash, err := hashOf(row[2]); err == nil && !kept.hasKey(number(row[1])) {
				found = append(found, hash)
			}
			if len(found) == limit {
				end = number(row[0])
			}
			return len(found) < limit, nil
		})
		*cursor, more = end, end != math.MaxInt64
		return err
	})
	if err != nil {
		return nil, false, describe("look for items that nobody has used in "+x.path, err)
	}
	return found, more, nil
}

// HasStoredFrom reports whether any item of an upstream has stored files.
func (x *Index) HasStoredFrom(ctx context.Context, origin int64) (some bool, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		found, err := c.integer("SELECT EXISTS (SELECT 1 FROM items INDEXED BY items_of_upstreams WHERE origin = ? AND origin != 0 AND stored_files != 0)", origin)
		some = found != 0
		return err
	})
	if err != nil {
		return false, describe("look for stored items of an upstream in "+x.path, err)
	}
	return some, nil
}

// LastAdded returns when the newest item was added; zero if there is none.
func (x *Index) LastAdded(ctx context.Context) (at time.Time, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		row, err := c.first("SELECT added_at FROM items ORDER BY id DESC LIMIT 1")
		if err == nil && row != nil {
			at = time.UnixMilli(number(row[0])).UTC()
		}
		return err
	})
	if err != nil {
		return time.Time{}, describe("look up the newest item in "+x.path, err)
	}
	return at, nil
}
