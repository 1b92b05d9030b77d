package index

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"time"

	"nar-herder/narinfo"
)

// Item is what the index knows of a store item, apart from its tags.
type Item struct {
	Hash narinfo.PathHash
	// Text is the narinfo byte for byte.
	Text []byte
	// AddedAt is when the narinfo came into the index it was first added to,
	// to the second: that is what instances tell each other.
	AddedAt time.Time
	// Stored has bit N set when the bytes of the narinfo's Nth file are in
	// the storage.
	Stored uint64
	// Sizes holds the size in bytes of each file as found in the storage, for
	// a narinfo that gives no FileSize; -1 where it is not known. It is nil
	// for others.
	Sizes []int64
	// WithdrawnAt is since when the item is hidden from clients, and DeleteAfter from
	// when on none of them can hold its narinfo, so that it may be deleted; zero for
	// an item that is not withdrawn.
	WithdrawnAt, DeleteAfter time.Time
	// Mirrored says that the instance that this one mirrors has the item.
	Mirrored bool

	id int64
}

// HasStored says whether the bytes of the Nth file are in the storage.
func (i *Item) HasStored(n int) bool { return n < 64 && i.Stored&(1<<n) != 0 }

// Place is where the item comes in the order of all. An item keeps its place, and
// those that come later have later ones.
func (i *Item) Position() int64 { return i.id }

// Text returns the narinfo of the item, byte for byte. The bytes are the
// caller's. The error is [ErrNotFound] when the index certainly has none.
func (x *Index) Text(ctx context.Context, hash narinfo.PathHash) (text []byte, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		text, err = x.textOf(c, hash)
		return err
	})
	if err != nil && err != ErrNotFound {
		return nil, describe(fmt.Sprintf("look up narinfo %s in %s", hash, x.path), err)
	}
	return text, err
}

// textOf is Text on a connection.
func (x *Index) textOf(c *connection, hash narinfo.PathHash) ([]byte, error) {
	// Of items, this reads the index alone.
	row, err := c.first("SELECT "+textColumns+" FROM items i LEFT JOIN narinfos n ON n.id = i.id WHERE i.key = ?", keyOf(hash))
	if err != nil {
		return nil, err
	}
	return x.textFrom(row, hash)
}

// textColumns are what textFrom takes.
const textColumns = "n.hash, n.dictionary, n.text, n.checksum, n.withdrawn_at"

// textFrom returns the text in a row that begins with textColumns and was found by the
// hash's key. The error is [ErrNotFound] when there is no row, only one of another hash
// with that key, or one that was withdrawn.
func (x *Index) textFrom(row []driver.Value, hash narinfo.PathHash) ([]byte, error) {
	if row == nil {
		return nil, ErrNotFound
	}
	found, err := x.isRight(row[:4], 0, hash)
	if err != nil {
		return nil, err
	}
	if at := row[4]; at != nil && found == hash {
		if _, err := withdrawnAt(at); err != nil {
			return nil, x.damaged(hash, 0, err.Error())
		}
		return nil, ErrNotFound
	}
	text, reason := x.codec.verified(found, row[1], row[2], row[3])
	switch {
	case reason != "":
		return nil, x.damaged(hash, 0, reason)
	case found != hash:
		return nil, ErrNotFound // the key is that of two hashes
	}
	return text, nil
}

// isRight looks at the hash in a row that was found by the key of another, and returns
// it. Another hash with the same key may be right. The row has hash, dictionary, text
// and checksum.
func (x *Index) isRight(row []driver.Value, id int64, hash narinfo.PathHash) (found narinfo.PathHash, err error) {
	if found, err = hashOf(row[0]); err != nil {
		return found, x.damaged(hash, id, err.Error())
	}
	if keyOf(found) == keyOf(hash) {
		return found, nil
	}
	if _, reason := x.codec.verified(found, row[1], row[2], row[3]); reason == "" {
		id = 0 // the row is sound, and of another item: it must not be changed
	}
	return found, x.damaged(hash, id, fmt.Sprintf("its row is that of %s", found))
}

// withdrawnAt is the time in a column that is not NULL. A flipped bit in the header of the
// row can turn NULL into 0, and would hide the item.
func withdrawnAt(column driver.Value) (time.Time, error) {
	at, ok := column.(int64)
	if !ok || at <= 0 {
		return time.Time{}, errors.New("the time of its withdrawal makes no sense")
	}
	return time.UnixMilli(at).UTC(), nil
}

const (
	itemColumns = "SELECT i.id, n.hash, i.added_at, i.stored_files, i.file_sizes, n.dictionary, n.text, n.checksum, n.withdrawn_at, i.mirrored, i.key, n.delete_after FROM items i LEFT JOIN narinfos n ON n.id = i.id"
	itemByKey   = itemColumns + " WHERE i.key = ?"
)

// Item returns all of the item's row. The error is [ErrNotFound] when the index
// certainly has none.
func (x *Index) Item(ctx context.Context, hash narinfo.PathHash) (item *Item, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		item, err = x.itemFrom(c, hash)
		return err
	})
	if err != nil && err != ErrNotFound {
		return nil, describe(fmt.Sprintf("look up item %s in %s", hash, x.path), err)
	}
	return item, err
}

// ItemsAt is [Index.Item] for many items, in the order of hashes; nil where the
// index certainly has none.
func (x *Index) ItemsAt(ctx context.Context, hashes []narinfo.PathHash) ([]*Item, error) {
	items := make([]*Item, len(hashes))
	err := x.EachAt(ctx, hashes, func(i int, item *Item, err error) error {
		items[i] = item
		return err
	})
	if err != nil {
		return nil, err
	}
	return items, nil
}

// EachAt calls f with the item of each hash, in their order, so that not all have to be in
// memory. The item is nil where the index certainly has none; err is then nil too, or says
// that the item is damaged. EachAt ends with the first error of f.
func (x *Index) EachAt(ctx context.Context, hashes []narinfo.PathHash, f func(i int, item *Item, err error) error) error {
	err := x.readers.do(ctx, func(c *connection) error {
		for i, hash := range hashes {
			item, err := x.itemFrom(c, hash)
			switch {
			case err == ErrNotFound:
				err = nil
			case err != nil:
				err = fmt.Errorf("%s: %w", hash, err)
			}
			if err == nil || errors.Is(err, ErrDamaged) {
				err = f(i, item, err)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return describe("look up items in "+x.path, err)
	}
	return nil
}

func (x *Index) itemFrom(c *connection, hash narinfo.PathHash) (*Item, error) {
	row, err := c.first(itemByKey, keyOf(hash))
	if err != nil {
		return nil, err
	}
	if row == nil {
		return nil, ErrNotFound
	}
	if _, err := x.isRight([]driver.Value{row[1], row[5], row[6], row[7]}, row[0].(int64), hash); err != nil {
		return nil, err
	}
	item, err := x.item(row)
	if err != nil {
		return nil, err
	}
	if item.Hash != hash {
		return nil, ErrNotFound
	}
	return item, nil
}

// item makes a row of itemColumns an Item. The error is a [Damage].
func (x *Index) item(row []driver.Value) (*Item, error) {
	id := row[0].(int64)
	hash, err := hashOf(row[1])
	if err != nil {
		return nil, x.damaged(hash, id, err.Error())
	}
	added, ok1 := row[2].(int64)
	stored, ok2 := row[3].(int64)
	key, ok3 := row[10].(int64)
	switch {
	case !ok1 || !ok2 || !ok3:
		return nil, x.damaged(hash, id, noInteger)
	case key != keyOf(hash):
		return nil, x.damaged(hash, id, "it has the key of another")
	}
	item := &Item{
		Hash:     hash,
		AddedAt:  time.UnixMilli(added).UTC(),
		Stored:   uint64(stored),
		Mirrored: row[9] == int64(1),
		id:       id,
	}
	if sizes := blob(row[4]); sizes != nil {
		item.Sizes = decodeInts(sizes)
	}
	if at := row[8]; at != nil {
		if item.WithdrawnAt, err = withdrawnAt(at); err != nil {
			return nil, x.damaged(hash, id, err.Error())
		}
		due, ok := row[11].(int64)
		if item.DeleteAfter = time.UnixMilli(due).UTC(); !ok || item.DeleteAfter.Before(item.WithdrawnAt) {
			return nil, x.damaged(hash, id, "the time of its deletion makes no sense")
		}
	}
	var reason string
	if item.Text, reason = x.codec.verified(hash, row[5], row[6], row[7]); reason != "" {
		return nil, x.damaged(hash, id, reason)
	}
	return item, nil
}

// listStep is how many rows a pass over all items reads at a time. Between
// steps no connection is held, so that a slow consumer holds up nobody and the
// write-ahead log can be folded back.
const listStep = 500

// Items returns all items that have every given tag, in the order they
// came. Items added or removed meanwhile may or may not be among them. An error that is
// a [Damage] is about one item, and others follow.
func (x *Index) Items(ctx context.Context, tags ...Tag) iter.Seq2[*Item, error] {
	return x.ItemsAfter(ctx, -1, tags...)
}

// ItemsAfter is [Index.Items] from behind a place on, as [Item.Position] gives it.
func (x *Index) ItemsAfter(ctx context.Context, place int64, tags ...Tag) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		type result struct {
			item *Item
			err  error
		}
		filter, args := tagFilter(tags)
		query := itemColumns + " WHERE i.id > ?" + filter + " ORDER BY i.id LIMIT ?"
		for last := place; ; {
			page := make([]result, 0, listStep)
			err := x.readers.do(ctx, func(c *connection) error {
				values := append(append([]driver.Value{last}, args...), int64(listStep))
				return c.rows(query, values, func(row []driver.Value) (bool, error) {
					last = row[0].(int64)
					item, err := x.item(row)
					page = append(page, result{item, err})
					return true, nil
				})
			})
			if err != nil {
				yield(nil, describe("list the items of "+x.path, err))
				return
			}
			for _, r := range page {
				if r.err != nil {
					r.err = describe("list the items of "+x.path, r.err)
				}
				if !yield(r.item, r.err) {
					return
				}
			}
			if len(page) < listStep {
				return
			}
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
		tags, err = c.tags(hash)
		return err
	})
	if err != nil {
		return nil, describe(fmt.Sprintf("read the tags of %s in %s", hash, x.path), err)
	}
	return tags, nil
}

// Tags is [Index.Tags] as this transaction sees them.
func (tx *Tx) Tags(hash narinfo.PathHash) ([]Tag, error) { return tx.conn.tags(hash) }

func (c *connection) tags(hash narinfo.PathHash) (tags []Tag, err error) {
	err = c.rows(`SELECT t.key, t.value FROM items i JOIN narinfos n ON n.id = i.id JOIN item_tags it ON it.item = i.id
		JOIN tags t ON t.id = it.tag WHERE i.key = ? AND n.hash = ? ORDER BY t.key, t.value`, []driver.Value{keyOf(hash), hash[:]},
		func(row []driver.Value) (bool, error) {
			key, err1 := textValue(row[0])
			value, err2 := textValue(row[1])
			tags = append(tags, Tag{key, value})
			return true, errors.Join(err1, err2)
		})
	return tags, err
}

// LastUsed is when the item's nar was asked for last, as far as that is written
// down; zero for never.
func (tx *Tx) LastUsed(hash narinfo.PathHash) (time.Time, error) {
	row, err := tx.conn.first("SELECT u.last_used FROM items i JOIN uses u ON u.item = i.id WHERE i.key = ?", keyOf(hash))
	if err != nil || row == nil {
		return time.Time{}, err
	}
	return time.UnixMilli(number(row[0])).UTC(), nil
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
		totals, err = c.totals()
		return err
	})
	if err != nil {
		return Totals{}, describe("read the totals of "+x.path, err)
	}
	return totals, nil
}

func (c *connection) totals() (Totals, error) {
	row, err := c.first("SELECT items, stored_nars, stored_size FROM totals")
	if err != nil {
		return Totals{}, err
	}
	if row == nil {
		return Totals{}, errors.New("the row of totals is missing")
	}
	return Totals{number(row[0]), number(row[1]), number(row[2])}, nil
}

// number is the value of an INTEGER column that no text depends on. Damage can make it
// one of another type.
func number(value driver.Value) int64 {
	n, _ := value.(int64)
	return n
}

// encodeInts packs numbers as zig-zag varints.
func encodeInts(numbers []int64) []byte {
	packed := make([]byte, 0, 4*len(numbers))
	for _, n := range numbers {
		packed = binary.AppendVarint(packed, n)
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
