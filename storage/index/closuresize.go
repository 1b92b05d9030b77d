package index

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"nar-herder/narinfo"
)

// ClosureSize are sums over an item and all items that it refers to, directly or through others.
type ClosureSize struct {
	// Items have a narinfo, and are not withdrawn.
	Items int
	// NarSize is the total length of their nars before compression, in bytes.
	NarSize int64
	// MissingCount is how many have no narinfo, are withdrawn or lost. Missing are the first of
	// them.
	MissingCount int
	Missing      []narinfo.StorePath
	// Damaged is how many can't be read. Their references are unknown.
	Damaged int
	// Complete is false if the closure has more items than were read.
	Complete bool
}

// namedMissing is how many missing items a ClosureSize names.
const namedMissing = 20

// ClosureSize follows the references of an item until it has read that many items, the nearest
// first. An item takes some 25 µs. The error is [ErrNotFound] if the item itself is missing, and
// a [Damage] if it is damaged.
func (x *Index) ClosureSize(ctx context.Context, hash narinfo.PathHash, most int) (size ClosureSize, err error) {
	// The first referrer of each item, by keys, names the item if it is missing.
	referrers := map[int64]int64{keyOf(hash): keyOf(hash)}
	next := []int64{keyOf(hash)}
	for read := 0; len(next) > 0 && read < most && err == nil; {
		step := next[:min(len(next), keysAtOnce, most-read)]
		next = next[len(step):]
		read += len(step)
		err = x.readers.do(ctx, func(c *connection) error {
			rows, err := c.closureRows(step)
			if err != nil {
				return err
			}
			for _, key := range step {
				if err := ctx.Err(); err != nil {
					return err
				}
				references, err := x.addToClosure(c, &size, rows[key], key, referrers[key])
				if errors.Is(err, ErrDamaged) && size.Items > 0 { // not the first item
					size.Damaged++
					continue
				} else if err != nil {
					return err
				}
				for ; len(references) >= 8; references = references[8:] {
					reference := int64(binary.BigEndian.Uint64(references))
					if _, known := referrers[reference]; !known {
						referrers[reference] = key
						next = append(next, reference)
					}
				}
			}
			return nil
		})
	}
	if err == ErrNotFound {
		return ClosureSize{}, err
	} else if err != nil {
		return ClosureSize{}, describe(fmt.Sprintf("follow the references of %s in %s", hash, x.path), err)
	}
	size.Complete = len(next) == 0
	return size, nil
}

var closureRows = "SELECT n.hash, n.dictionary, n.text, n.checksum, n.refs, n.withdrawn_at, n.lost_at, i.key FROM items i JOIN narinfos n ON n.id = i.id WHERE i.key" + inKeys

// closureRows returns the rows of those keys that are items.
func (c *connection) closureRows(keys []int64) (map[int64][]driver.Value, error) {
	found := make(map[int64][]driver.Value, len(keys))
	err := c.rowsIn(closureRows, keys, func(row []driver.Value) (bool, error) {
		found[number(row[7])] = slices.Clone(row)
		return true, nil
	})
	return found, err
}

// addToClosure adds the item in a row, nil for a missing one, to the sums, and returns its
// references.
func (x *Index) addToClosure(c *connection, size *ClosureSize, row []driver.Value, key, referrer int64) (references []byte, err error) {
	isFirst := size.Items == 0
	if row == nil || row[5] != nil || row[6] != nil && !isFirst {
		if isFirst {
			return nil, ErrNotFound
		}
		size.MissingCount++
		if len(size.Missing) < namedMissing {
			return nil, x.nameMissing(c, size, key, referrer)
		}
		return nil, nil
	}
	text, err := x.closureText(row)
	if err != nil {
		return nil, err
	}
	size.Items++
	narSize, err := strconv.ParseInt(string(field(text, "NarSize: ")), 10, 64)
	if err != nil {
		n, err := narinfo.Parse(text)
		if err != nil {
			return nil, err
		}
		narSize = max(n.NarSize, 0) // -1 if it is not given
	}
	size.NarSize += narSize
	return blob(row[4]), nil
}

// closureText returns the text in a row with hash, dictionary, text and checksum.
func (x *Index) closureText(row []driver.Value) ([]byte, error) {
	hash, err := hashOf(row[0])
	if err != nil {
		return nil, err
	}
	text, reason := x.codec.verified(hash, row[1], row[2], row[3])
	if reason != "" {
		return nil, x.damaged(hash, 0, reason)
	}
	return text, nil
}

// nameMissing adds the name of a missing item, from the narinfo of an item that refers to it.
func (x *Index) nameMissing(c *connection, size *ClosureSize, key, referrer int64) error {
	row, err := c.first("SELECT n.hash, n.dictionary, n.text, n.checksum FROM items i JOIN narinfos n ON n.id = i.id WHERE i.key = ?", referrer)
	if err != nil || row == nil {
		return err // removed meanwhile
	}
	text, err := x.closureText(row)
	if err != nil {
		return err
	}
	n, err := narinfo.Parse(text)
	if err != nil {
		return err
	}
	for _, reference := range n.References {
		if keyOf(reference.Hash) == key {
			size.Missing = append(size.Missing, reference)
			break
		}
	}
	return nil
}
