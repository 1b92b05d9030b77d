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

// Pin is an item whose closure is to stay: the item, what it refers to, what
// that refers to, and so on.
type Pin struct {
	Hash narinfo.PathHash
	At   time.Time
}

// Pin pins an item, which need not be known (yet). It returns false for one that
// was pinned before.
func (tx *Tx) Pin(hash narinfo.PathHash, at time.Time) (bool, error) {
	return tx.changed("INSERT INTO pins VALUES (?, ?) ON CONFLICT DO NOTHING", hash[:], at.UnixMilli())
}

// Unpin takes the pin off an item. It returns false for one that was not pinned.
func (tx *Tx) Unpin(hash narinfo.PathHash) (bool, error) {
	return tx.changed("DELETE FROM pins WHERE hash = ?", hash[:])
}

// changed runs a statement and says whether it has changed any row.
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

// Pins is [Index.Pins] as this transaction sees them.
func (tx *Tx) Pins() ([]Pin, error) { return tx.conn.pins() }

func (c *connection) pins() (pins []Pin, err error) {
	err = c.rows("SELECT hash, at FROM pins ORDER BY at, hash", nil, func(row []driver.Value) (bool, error) {
		hash, err := hashOf(row[0])
		pins = append(pins, Pin{hash, time.UnixMilli(number(row[1])).UTC()})
		return true, err
	})
	return pins, err
}

// Closure is a set of items that is closed under references.
type Closure struct {
	roots     []narinfo.PathHash
	rootOf    map[int64]int32 // for each item, the root that it was reached from first
	missing   map[int64]struct{}
	withdrawn []narinfo.PathHash
	size      int64
}

// Closure returns the items at the roots and all that are reached from them by
// references. It takes some 50 bytes for each.
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

// Has says whether an item is in the closure, or was referred to in it without
// being known. Of two items whose hashes share their first 64 bits, which the
// index never has both, it can't tell one from the other.
func (c *Closure) Has(hash narinfo.PathHash) bool {
	_, has := c.rootOf[keyOf(hash)]
	return has
}

// Root returns a root from which an item of the closure is reached. has is false
// for one that is not in it.
func (c *Closure) Root(hash narinfo.PathHash) (root narinfo.PathHash, has bool) {
	i, has := c.rootOf[keyOf(hash)]
	if !has {
		return narinfo.PathHash{}, false
	}
	return c.roots[i], true
}

// Missing says whether an item is referred to in the closure, or a root of it,
// and has no narinfo.
func (c *Closure) Missing(hash narinfo.PathHash) bool {
	_, missing := c.missing[keyOf(hash)]
	return missing
}

// Len is the number of items, with those that have no narinfo, whose number is
// missing.
func (c *Closure) Len() (items, missing int) { return len(c.rootOf), len(c.missing) }

// Size is the length of all stored files of the items, in bytes.
func (c *Closure) Size() int64 { return c.size }

// Withdrawn are the items that were withdrawn, and so are about to leave the
// closure.
func (c *Closure) Withdrawn() []narinfo.PathHash { return c.withdrawn }

// ItemsOf returns the items of a closure that have a narinfo, each once, in an
// order that is the same each time. Items removed since the closure was made are
// not among them. It takes 8 bytes for each. An error that is a [Damage] is about one item,
// and others follow.
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
