package index

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"nar-herder/narinfo"
)

// Pin keeps an item and its closure, all items that it refers to directly or through
// others, from removal.
type Pin struct {
	Hash narinfo.PathHash
	At   time.Time
}

// Pin pins an item, which may be unknown so far. It returns false if the item was pinned
// already.
func (tx *Tx) Pin(hash narinfo.PathHash, at time.Time) (bool, error) {
	return tx.changed("INSERT INTO pins VALUES (?, ?) ON CONFLICT DO NOTHING", hash[:], at.UnixMilli())
}

// Unpin removes a pin. It returns false if the item was not pinned.
func (tx *Tx) Unpin(hash narinfo.PathHash) (bool, error) {
	return tx.changed("DELETE FROM pins WHERE hash = ?", hash[:])
}

// changed runs a statement and reports whether it has changed any row.
func (tx *Tx) changed(text string, args ...driver.Value) (bool, error) {
	if err := tx.conn.exec(text, args...); err != nil {
		return false, err
	}
	n, err := tx.conn.integer("SELECT changes()")
	return n > 0, err
}

// Pins returns all pins, the oldest first.
func (x *Index) Pins(ctx context.Context) (pins []Pin, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		pins, err = c.pins()
		return err
	})
	if err != nil {
		return nil, describe("read the pins in "+x.path, err)
	}
	return pins, nil
}

// CountPins returns the number of pins.
func (x *Index) CountPins(ctx context.Context) (count int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		count, err = c.integer("SELECT count(*) FROM pins")
		return err
	})
	if err != nil {
		return 0, describe("count the pins in "+x.path, err)
	}
	return count, nil
}

// Pins is [Index.Pins] within this transaction.
func (tx *Tx) Pins() ([]Pin, error) { return tx.conn.pins() }

func (c *connection) pins() (pins []Pin, err error) {
	err = c.rows("SELECT hash, at FROM pins ORDER BY at, hash", nil, func(row []driver.Value) (bool, error) {
		hash, err := hashOf(row[0])
		pins = append(pins, Pin{hash, time.UnixMilli(number(row[1])).UTC()})
		return true, err
	})
	return pins, err
}

// Closure is a set of items and all items that they refer to.
type Closure struct {
	roots     []narinfo.PathHash
	rootOf    map[int64]int32 // the first root that reached each item, by key
	missing   map[int64]struct{}
	withdrawn []narinfo.PathHash
	size      int64
}

// Closure returns the roots and all items that they refer to, directly or through others.
// It takes about 50 bytes per item.
func (x *Index) Closure(ctx context.Context, roots []narinfo.PathHash) (*Closure, error) {
	closure := &Closure{roots: roots, rootOf: make(map[int64]int32), missing: make(map[int64]struct{})}
	type reached struct {
		key  int64
		root int32
	}
	next := make([]reached, 0, len(roots))
	for i, root := range roots {
		next = append(next, reached{keyOf(root), int32(i)})
	}
	for len(next) > 0 {
		step := next[:min(len(next), listStep)]
		next = next[len(step):]
		err := x.readers.do(ctx, func(c *connection) error {
			for _, item := range step {
				if _, known := closure.rootOf[item.key]; known {
					continue
				}
				closure.rootOf[item.key] = item.root
				row, err := c.first("SELECT n.refs, n.hash, n.withdrawn_at, i.stored_size FROM items i JOIN narinfos n ON n.id = i.id WHERE i.key = ?", item.key)
				if err != nil {
					return err
				}
				if row == nil {
					closure.missing[item.key] = struct{}{}
					continue
				}
				if row[2] != nil {
					hash, err := hashOf(row[1])
					if err != nil {
						return err
					}
					closure.withdrawn = append(closure.withdrawn, hash)
				}
				closure.size += number(row[3])
				for refs := blob(row[0]); len(refs) >= 8; refs = refs[8:] {
					reference := int64(binary.BigEndian.Uint64(refs))
					if _, known := closure.rootOf[reference]; !known {
						next = append(next, reached{reference, item.root})
					}
				}
			}
			return nil
		})
		if err != nil {
			return nil, describe(fmt.Sprintf("follow references in %s", x.path), err)
		}
	}
	return closure, nil
}

// Has reports whether an item is in the closure, or is missing from it. It compares the
// first 64 bits of hashes, which are unique in the index.
func (c *Closure) Has(hash narinfo.PathHash) bool {
	_, has := c.rootOf[keyOf(hash)]
	return has
}

// Root returns a root that reaches the item. has is false for an item outside of the
// closure.
func (c *Closure) Root(hash narinfo.PathHash) (root narinfo.PathHash, has bool) {
	i, has := c.rootOf[keyOf(hash)]
	if !has {
		return narinfo.PathHash{}, false
	}
	return c.roots[i], true
}

// Missing reports whether the item is a root, or is referred to, and has no narinfo.
func (c *Closure) Missing(hash narinfo.PathHash) bool {
	_, missing := c.missing[keyOf(hash)]
	return missing
}

// Len returns the number of items, and how many of them have no narinfo.
func (c *Closure) Len() (items, missing int) { return len(c.rootOf), len(c.missing) }

// Size returns the total length of the items' stored files in bytes.
func (c *Closure) Size() int64 { return c.size }

// Withdrawn returns the withdrawn items of the closure, which will be deleted.
func (c *Closure) Withdrawn() []narinfo.PathHash { return c.withdrawn }

// ItemsOf iterates over the items of a closure that have a narinfo, always in the same
// order. It skips items that were removed after the closure was made. It takes 8 bytes per
// item. An error that is a [Damage] concerns one item, and the iteration continues.
func (x *Index) ItemsOf(ctx context.Context, closure *Closure) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		for step := range slices.Chunk(slices.Sorted(maps.Keys(closure.rootOf)), listStep) {
			type result struct {
				item *Item
				err  error
			}
			page := make([]result, 0, len(step))
			err := x.readers.do(ctx, func(c *connection) error {
				for _, key := range step {
					row, err := c.first(itemByKey, key)
					if err != nil {
						return err
					}
					if row == nil {
						continue
					}
					item, err := x.item(row)
					page = append(page, result{item, err})
				}
				return nil
			})
			if err != nil {
				yield(nil, describe("list the items of a closure in "+x.path, err))
				return
			}
			for _, r := range page {
				if r.err != nil {
					r.err = describe("list the items of a closure in "+x.path, r.err)
				}
				if !yield(r.item, r.err) {
					return
				}
			}
		}
	}
}
