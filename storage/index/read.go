package index

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"iter"
	"time"

	"nar-herder/narinfo"
)

// Item is what the index knows of a store item, apart from its tags.
type Item struct {
	// ID is the number of the item's path in this database.
	ID   int64
	Hash narinfo.PathHash
	// Text is the narinfo byte for byte.
	Text []byte
	// AddedAt is when the narinfo came into the index it was first added to,
	// to the millisecond.
	AddedAt time.Time
	// Stored has bit N set when the bytes of the narinfo's Nth file are in
	// the storage.
	Stored uint64
	// Sizes holds the size in bytes of each file as found in the storage, for
	// a narinfo that gives no FileSize; -1 where it is not known. It is nil
	// for others.
	Sizes []int64
}

// HasStored says whether the bytes of the Nth file are in the storage.
func (i *Item) HasStored(n int) bool { return n < 64 && i.Stored&(1<<n) != 0 }

// Text returns the narinfo of the item, byte for byte. The bytes are the
// caller's. The error is [ErrNotFound] when the index certainly has none.
func (x *Index) Text(ctx context.Context, hash narinfo.PathHash) (text []byte, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		row, err := c.first("SELECT n.dictionary, n.text FROM paths p JOIN narinfos n ON n.id = p.id WHERE p.hash = ?", hash[:])
		if err != nil {
			return err
		}
		if row == nil {
			return ErrNotFound
		}
		text, err = x.codec.decompress(row[0].(int64), blob(row[1]))
		return err
	})
	if err != nil && err != ErrNotFound {
		return nil, describe(fmt.Sprintf("look up narinfo %s in %s", hash, x.path), err)
	}
	return text, err
}

const (
	itemColumns = "SELECT i.id, p.hash, i.added_at, i.stored_files, i.file_sizes, n.dictionary, n.text"
	itemByHash  = itemColumns + " FROM paths p JOIN items i ON i.id = p.id JOIN narinfos n ON n.id = p.id WHERE p.hash = ?"
)

// Item returns all of the item's row. The error is [ErrNotFound] when the index
// certainly has none.
func (x *Index) Item(ctx context.Context, hash narinfo.PathHash) (item *Item, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		row, err := c.first(itemByHash, hash[:])
		if err != nil {
			return err
		}
		if row == nil {
			return ErrNotFound
		}
		item, err = x.item(row)
		return err
	})
	if err != nil && err != ErrNotFound {
		return nil, describe(fmt.Sprintf("look up item %s in %s", hash, x.path), err)
	}
	return item, err
}

// item makes a row of itemColumns an Item.
func (x *Index) item(row []driver.Value) (*Item, error) {
	hash, err := hashOf(blob(row[1]))
	if err != nil {
		return nil, err
	}
	item := &Item{
		ID:      row[0].(int64),
		Hash:    hash,
		AddedAt: time.UnixMilli(row[2].(int64)).UTC(),
		Stored:  uint64(row[3].(int64)),
	}
	if sizes := blob(row[4]); sizes != nil {
		item.Sizes = decodeInts(sizes)
	}
	item.Text, err = x.codec.decompress(row[5].(int64), blob(row[6]))
	return item, err
}

// listStep is how many rows a pass over all items reads at a time. Between
// steps no connection is held, so that a slow consumer holds up nobody and the
// write-ahead log can be folded back.
const listStep = 500

// Items returns all items that have every given tag, in the order they were
// first met. Items added or removed meanwhile may or may not be among them.
func (x *Index) Items(ctx context.Context, tags ...Tag) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		filter, args := tagFilter(tags)
		query := itemColumns + " FROM items i JOIN paths p ON p.id = i.id JOIN narinfos n ON n.id = i.id WHERE i.id > ?" +
			filter + " ORDER BY i.id LIMIT ?"
		for last := int64(-1); ; {
			page := make([]*Item, 0, listStep)
			err := x.readers.do(ctx, func(c *connection) error {
				values := append(append([]driver.Value{last}, args...), int64(listStep))
				return c.rows(query, values, func(row []driver.Value) (bool, error) {
					item, err := x.item(row)
					page = append(page, item)
					return true, err
				})
			})
			if err != nil {
				yield(nil, describe("list the items of "+x.path, err))
				return
			}
			for _, item := range page {
				if !yield(item, nil) {
					return
				}
			}
			if len(page) < listStep {
				return
			}
			last = page[len(page)-1].ID
		}
	}
}

// tagFilter is the condition that an item has every tag.
func tagFilter(tags []Tag) (condition string, args []driver.Value) {
	for _, tag := range tags {
		condition += " AND EXISTS (SELECT 1 FROM item_tags it JOIN tags t ON t.id = it.tag WHERE it.item = i.id AND t.key = ? AND t.value = ?)"
		args = append(args, tag.Key, tag.Value)
	}
	return condition, args
}

// Tags returns the tags of the item, sorted; none for an item not known.
func (x *Index) Tags(ctx context.Context, hash narinfo.PathHash) (tags []Tag, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		return c.rows(`SELECT t.key, t.value FROM paths p JOIN item_tags it ON it.item = p.id
			JOIN tags t ON t.id = it.tag WHERE p.hash = ? ORDER BY t.key, t.value`, []driver.Value{hash[:]},
			func(row []driver.Value) (bool, error) {
				tags = append(tags, Tag{row[0].(string), row[1].(string)})
				return true, nil
			})
	})
	if err != nil {
		return nil, describe(fmt.Sprintf("read the tags of %s in %s", hash, x.path), err)
	}
	return tags, nil
}

// References returns the hashes that the item's narinfo refers to, in its
// order, and which of them have no narinfo in the index. The error is
// [ErrNotFound] when the index has no such item.
func (x *Index) References(ctx context.Context, hash narinfo.PathHash) (references, missing []narinfo.PathHash, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		row, err := c.first("SELECT n.refs FROM paths p JOIN narinfos n ON n.id = p.id WHERE p.hash = ?", hash[:])
		if err != nil {
			return err
		}
		if row == nil {
			return ErrNotFound
		}
		for _, id := range decodeInts(blob(row[0])) {
			row, err := c.first("SELECT p.hash, i.id FROM paths p LEFT JOIN items i ON i.id = p.id WHERE p.id = ?", id)
			if err != nil {
				return err
			}
			if row == nil {
				return fmt.Errorf("path %d is referred to, but has no row", id)
			}
			reference, err := hashOf(blob(row[0]))
			if err != nil {
				return err
			}
			references = append(references, reference)
			if row[1] == nil {
				missing = append(missing, reference)
			}
		}
		return nil
	})
	if err != nil && err != ErrNotFound {
		return nil, nil, describe(fmt.Sprintf("read the references of %s in %s", hash, x.path), err)
	}
	return references, missing, err
}

// Referrers returns the hashes of the items whose narinfos refer to the path,
// itself among them where it does. The path need not be an item.
func (x *Index) Referrers(ctx context.Context, hash narinfo.PathHash) (referrers []narinfo.PathHash, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		var ids []int64
		err := c.rows("SELECT r.block, r.offsets FROM paths p JOIN referrers r ON r.path = p.id WHERE p.hash = ? ORDER BY r.block",
			[]driver.Value{hash[:]}, func(row []driver.Value) (bool, error) {
				ids = append(ids, decodeBlock(row[0].(int64), blob(row[1]))...)
				return true, nil
			})
		if err != nil {
			return err
		}
		for _, id := range ids {
			row, err := c.first("SELECT hash FROM paths WHERE id = ?", id)
			if err != nil {
				return err
			}
			if row == nil {
				return fmt.Errorf("path %d refers to it, but has no row", id)
			}
			referrer, err := hashOf(blob(row[0]))
			if err != nil {
				return err
			}
			referrers = append(referrers, referrer)
		}
		return nil
	})
	if err != nil {
		return nil, describe(fmt.Sprintf("read the referrers of %s in %s", hash, x.path), err)
	}
	return referrers, nil
}

// Totals are the sums that the index keeps of itself.
type Totals struct {
	// Items is the number of narinfos.
	Items int64
	// StoredNars is the number of files in the storage, of StoredSize bytes
	// together, by their length.
	StoredNars, StoredSize int64
}

// Totals reads the sums. It takes the same short time however many items there
// are.
func (x *Index) Totals(ctx context.Context) (totals Totals, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		row, err := c.first("SELECT items, stored_nars, stored_size FROM totals")
		if err != nil {
			return err
		}
		if row == nil {
			return fmt.Errorf("the row of totals is missing")
		}
		totals = Totals{row[0].(int64), row[1].(int64), row[2].(int64)}
		return nil
	})
	if err != nil {
		return Totals{}, describe("read the totals of "+x.path, err)
	}
	return totals, nil
}

// encodeInts packs numbers as zig-zag varints: most path ids are small or near.
func encodeInts[T int | int64](numbers []T) []byte {
	packed := make([]byte, 0, 4*len(numbers))
	for _, n := range numbers {
		packed = binary.AppendVarint(packed, int64(n))
	}
	return packed
}

// decodeInts is the inverse of encodeInts; it stops at what it can't read.
func decodeInts(packed []byte) (numbers []int64) {
	for len(packed) > 0 {
		n, size := binary.Varint(packed)
		if size <= 0 {
			break
		}
		numbers = append(numbers, n)
		packed = packed[size:]
	}
	return numbers
}

// blockSize is how many neighbouring ids share one row of the table referrers.
// An offset within a block takes two bytes; a row of even the most referred-to
// path stays within a few pages.
const blockSize = 1 << 12

// decodeBlock returns the ids in one row of the table referrers.
func decodeBlock(block int64, offsets []byte) []int64 {
	ids := make([]int64, 0, len(offsets)/2)
	for ; len(offsets) >= 2; offsets = offsets[2:] {
		ids = append(ids, block*blockSize+int64(binary.LittleEndian.Uint16(offsets)))
	}
	return ids
}
