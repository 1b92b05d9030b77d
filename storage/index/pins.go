package index

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
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
		pins = append(pins, Pin{hash, time.UnixMilli(row[1].(int64)).UTC()})
		return true, err
	})
	return pins, err
}

// Closure is a set of items that is closed under references.
type Closure struct {
	keys    map[int64]struct{}
	missing map[int64]struct{}
}

// Closure returns the items at the roots and all that are reached from them by
// references. It takes some 50 bytes for each.
func (x *Index) Closure(ctx context.Context, roots []narinfo.PathHash) (*Closure, error) {
	closure := &Closure{keys: make(map[int64]struct{}), missing: make(map[int64]struct{})}
	next := make([]int64, 0, len(roots))
	for _, root := range roots {
		next = append(next, keyOf(root))
	}
	for len(next) > 0 {
		step := next[:min(len(next), listStep)]
		next = next[len(step):]
		err := x.readers.do(ctx, func(c *connection) error {
			for _, key := range step {
				if _, known := closure.keys[key]; known {
					continue
				}
				closure.keys[key] = struct{}{}
				row, err := c.first("SELECT n.refs FROM items i JOIN narinfos n ON n.id = i.id WHERE i.key = ?", key)
				if err != nil {
					return err
				}
				if row == nil {
					closure.missing[key] = struct{}{}
					continue
				}
				for refs := blob(row[0]); len(refs) >= 8; refs = refs[8:] {
					reference := int64(binary.BigEndian.Uint64(refs))
					if _, known := closure.keys[reference]; !known {
						next = append(next, reference)
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
	_, has := c.keys[keyOf(hash)]
	return has
}

// Missing says whether an item is referred to in the closure, or a root of it,
// and has no narinfo.
func (c *Closure) Missing(hash narinfo.PathHash) bool {
	_, missing := c.missing[keyOf(hash)]
	return missing
}

// Len is the number of items, with those that have no narinfo, whose number is
// missing.
func (c *Closure) Len() (items, missing int) { return len(c.keys), len(c.missing) }
