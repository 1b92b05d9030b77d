package index

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"time"

	"nar-herder/narinfo"
)

// Item is what the index records of a store item, without its tags.
type Item struct {
	Hash narinfo.PathHash
	// Text is the narinfo byte for byte.
	Text []byte
	// AddedAt is when the item was added to the first index that had it, in whole seconds.
	// Mirrors keep this time.
	AddedAt time.Time
	// Bit N of Stored is set if the narinfo's Nth file is in the storage.
	Stored uint64
	// Sizes has the size of each file in the storage in bytes, for a narinfo without
	// FileSize: -1 if it is unknown. It is nil for other narinfos.
	Sizes []int64
	// WithdrawnAt is when the item was withdrawn, and DeleteAfter when no client can hold
	// its narinfo any more, so that it may be deleted. Both are zero for an item that is
	// not withdrawn.
	WithdrawnAt, DeleteAfter time.Time
	// Mirrored means that the mirrored instance has the item.
	Mirrored bool
	// VerifiedAt is when the stored files were last compared with the NarHash. Of several
	// files, it is the time of the one that was verified first. It is zero if a file never
	// was.
	VerifiedAt time.Time
	// Origin is the upstream that the item came from, see [Tx.Origin]: its nars can be fetched
	// again. It is 0 for an item that was imported or mirrored. FreshUntil is when the
	// upstream must be queried again whether it still has the item.
	Origin     int64
	FreshUntil time.Time
	// Bit N of Dropped is set if the narinfo's Nth file was dropped: it is not wanted in the
	// storage, and not announced unless its block is signed. DropAfter is when the dropped
	// files that are still stored may be deleted; zero if there are none.
	Dropped   uint64
	DropAfter time.Time

	id int64
}

// HasStored reports whether the Nth file is in the storage.
func (i *Item) HasStored(n int) bool { return n < 64 && i.Stored&(1<<n) != 0 }

// HasDropped reports whether the Nth file was dropped.
func (i *Item) HasDropped(n int) bool { return n < 64 && i.Dropped&(1<<n) != 0 }

// Position orders items by insertion. It never changes, and later items have larger
// positions.
func (i *Item) Position() int64 { return i.id }

// Text returns the narinfo of the item as it is announced, see [Item.Announced]. The caller
// owns the result. The error is [ErrNotFound] if the index definitely has no such item, and
// [ErrLost] if clients must not get its narinfo because no nar of it is stored any more.
func (x *Index) Text(ctx context.Context, hash narinfo.PathHash) (text []byte, err error) {
	text, _, err = x.TextUntil(ctx, hash)
	return text, err
}

// TextUntil is [Index.Text] with [Item.FreshUntil]. That is the zero time only for an item that
// did not come from an upstream.
func (x *Index) TextUntil(ctx context.Context, hash narinfo.PathHash) (text []byte, freshUntil time.Time, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		text, freshUntil, err = x.textOf(c, hash)
		return err
	})
	if err == ErrLost {
		return nil, time.Time{}, err
	}
	if err != nil && err != ErrNotFound {
		return nil, time.Time{}, describe(fmt.Sprintf("look up narinfo %s in %s", hash, x.path), err)
	}
	return text, freshUntil, err
}

func (x *Index) textOf(c *connection, hash narinfo.PathHash) (text []byte, freshUntil time.Time, err error) {
	row, err := c.first("SELECT "+textColumns+" FROM items i LEFT JOIN narinfos n ON n.id = i.id WHERE i.key = ?1", keyOf(hash))
	if err != nil {
		return nil, time.Time{}, err
	}
	text, err = x.textFrom(row, hash)
	return text, freshUntilFrom(row), err
}

// textColumns are the columns that textFrom and freshUntilFrom read. Parameter 1 is the key. They
// read only indexes of items, not the table; those of dropped files and upstreams are usually
// empty.
const textColumns = `n.hash, n.dictionary, n.text, n.checksum, n.withdrawn_at, n.lost_at,
	(SELECT d.dropped_files FROM items d INDEXED BY items_dropped WHERE d.key = ?1 AND d.dropped_files != 0),
	(SELECT u.fresh_until FROM items u INDEXED BY items_fresh WHERE u.key = ?1 AND u.origin != 0)`

// textFrom returns the announced text in a row that begins with textColumns and was found by the key
// of hash. The error is [ErrNotFound] if the row is nil, has another hash with the same
// key, or is withdrawn, and [ErrLost], with the text, if its
// nars are lost.
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
		return nil, ErrNotFound // two hashes share the key
	}
	text = announced(text, uint64(number(row[6])))
	if at, ok := row[5].(int64); ok && at > 0 { // damage can turn NULL into 0
		return text, ErrLost
	}
	return text, nil
}

// freshUntilFrom returns the time for [Index.TextUntil] in a row that begins with textColumns.
func freshUntilFrom(row []driver.Value) time.Time {
	if row == nil || row[7] == nil {
		return time.Time{}
	}
	return time.UnixMilli(number(row[7])).UTC()
}

// isRight returns the hash in a row that was found by key, and an error if it doesn't
// belong to that key. Two hashes may share a key. The row has hash, dictionary, text and
// checksum.
func (x *Index) isRight(row []driver.Value, id int64, hash narinfo.PathHash) (found narinfo.PathHash, err error) {
	if found, err = hashOf(row[0]); err != nil {
		return found, x.damaged(hash, id, err.Error())
	}
	if keyOf(found) == keyOf(hash) {
		return found, nil
	}
	if _, reason := x.codec.verified(found, row[1], row[2], row[3]); reason == "" {
		id = 0 // the row is intact and belongs to another item: don't change it
	}
	return found, x.damaged(hash, id, fmt.Sprintf("its row belongs to %s", found))
}

// withdrawnAt converts a column that is not NULL to a time. A flipped bit in the header of
// a row can turn NULL into 0, which must not hide the item.
func withdrawnAt(column driver.Value) (time.Time, error) {
	at, ok := column.(int64)
	if !ok || at <= 0 {
		return time.Time{}, errors.New("invalid withdrawal time")
	}
	return time.UnixMilli(at).UTC(), nil
}

const (
	itemColumns = "SELECT i.id, n.hash, i.added_at, i.stored_files, i.file_sizes, n.dictionary, n.text, n.checksum, n.withdrawn_at, i.mirrored, i.key, n.delete_after, i.verified_at, i.origin, i.fresh_until, i.dropped_files, i.drop_after FROM items i LEFT JOIN narinfos n ON n.id = i.id"
	itemByKey   = itemColumns + " WHERE i.key = ?"
)

// Item returns the row of the item. The error is [ErrNotFound] if the index definitely has
// no such item.
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

// ItemsAt is [Index.Item] for many items, in the order of hashes. An item is nil if the
// index definitely does not have it.
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

// EachAt calls f with the item of each hash, in their order, without keeping all items in
// memory. The item is nil if the index definitely does not have it, or if it is damaged;
// then err is not nil. EachAt stops at the first error of f.
func (x *Index) EachAt(ctx context.Context, hashes []narinfo.PathHash, f func(i int, item *Item, err error) error) error {
	err := x.readers.do(ctx, func(c *connection) error {
		i := 0
		for part := range slices.Chunk(hashes, keysAtOnce) {
			isPresent := c.presence(part)
			for _, hash := range part {
				var item *Item
				var err error
				if isPresent(keyOf(hash)) {
					item, err = x.itemFrom(c, hash)
				}
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
				i++
			}
		}
		return nil
	})
	if err != nil {
		return describe("look up items in "+x.path, err)
	}
	return nil
}

// keysAtOnce is how many items are looked up with one query. A query for each takes longer; for
// missing items, about four times as long.
const keysAtOnce = 64

// inKeys ends a query for [connection.rowsIn].
var inKeys = " IN (?" + strings.Repeat(", ?", keysAtOnce-1) + ")"

// rowsIn runs a query that ends in inKeys with 1 to keysAtOnce keys.
func (c *connection) rowsIn(query string, keys []int64, f func(row []driver.Value) (bool, error)) error {
	args := make([]driver.Value, keysAtOnce)
	for i := range args {
		args[i] = keys[min(i, len(keys)-1)]
	}
	return c.rows(query, args, f)
}

var presentKeys = "SELECT key FROM items WHERE key" + inKeys

// presence returns which of at most keysAtOnce items may be in the index. If that can't be
// told, all may be, and reading them tells why.
func (c *connection) presence(hashes []narinfo.PathHash) func(key int64) bool {
	keys := make([]int64, len(hashes))
	for i, hash := range hashes {
		keys[i] = keyOf(hash)
	}
	present := make(map[int64]bool)
	err := c.rowsIn(presentKeys, keys, func(row []driver.Value) (bool, error) {
		key, ok := row[0].(int64)
		if !ok {
			return false, errors.New(noInteger)
		}
		present[key] = true
		return true, nil
	})
	return func(key int64) bool { return err != nil || present[key] }
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

// item converts a row of itemColumns to an Item. The error is a [Damage].
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
		return nil, x.damaged(hash, id, "it has the key of another item")
	}
	item := &Item{
		Hash:     hash,
		AddedAt:  time.UnixMilli(added).UTC(),
		Stored:   uint64(stored),
		Mirrored: row[9] == int64(1),
		id:       id,
	}
	if at, ok := row[12].(int64); ok && at > 0 {
		item.VerifiedAt = time.UnixMilli(at).UTC()
	}
	item.Origin, item.Dropped = number(row[13]), uint64(number(row[15]))
	if at := number(row[14]); at > 0 {
		item.FreshUntil = time.UnixMilli(at).UTC()
	}
	if at := number(row[16]); at > 0 {
		item.DropAfter = time.UnixMilli(at).UTC()
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
			return nil, x.damaged(hash, id, "invalid deletion time")
		}
	}
	var reason string
	if item.Text, reason = x.codec.verified(hash, row[5], row[6], row[7]); reason != "" {
		return nil, x.damaged(hash, id, reason)
	}
	return item, nil
}

// listStep is how many rows a scan reads at a time. Between steps it holds no connection,
// so that a slow consumer delays nobody and the log can be checkpointed.
const listStep = 500

// Items iterates over all items that have every given tag, in insertion order. Items that
// are added or removed meanwhile may be missing. An error that is a [Damage] concerns one
// item, and the iteration continues.
func (x *Index) Items(ctx context.Context, tags ...Tag) iter.Seq2[*Item, error] {
	return x.ItemsAfter(ctx, -1, tags...)
}

// ItemsAfter is [Index.Items] for the items after an [Item.Position].
func (x *Index) ItemsAfter(ctx context.Context, position int64, tags ...Tag) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		type result struct {
			item *Item
			err  error
		}
		filter, args := tagFilter(tags)
		query := itemColumns + " WHERE i.id > ?" + filter + " ORDER BY i.id LIMIT ?"
		for last := position; ; {
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

// tagFilter returns the condition that an item has every tag.
func tagFilter(tags []Tag) (condition string, args []driver.Value) {
	for _, tag := range tags {
		condition += " AND EXISTS (SELECT 1 FROM item_tags it JOIN tags t ON t.id = it.tag WHERE it.item = i.id AND t.key = ? AND t.value = ?)"
		args = append(args, tag.Key, tag.Value)
	}
	return condition, args
}

// Tags returns the tags of the item, sorted. An unknown item has none.
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

// Tags is [Index.Tags] within this transaction.
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

// LastUsed returns the last recorded use of the item's nar, or the zero time.
func (tx *Tx) LastUsed(hash narinfo.PathHash) (time.Time, error) {
	row, err := tx.conn.first("SELECT u.last_used FROM items i JOIN uses u ON u.item = i.id WHERE i.key = ?", keyOf(hash))
	if err != nil || row == nil {
		return time.Time{}, err
	}
	return time.UnixMilli(number(row[0])).UTC(), nil
}

// Totals are sums over all items.
type Totals struct {
	Items int64
	// StoredNars is the number of files in the storage, and StoredSize their total length
	// in bytes.
	StoredNars, StoredSize int64
}

// Totals returns the sums in constant time.
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

// number returns the value of an INTEGER column, or 0 if damage has changed its type.
func number(value driver.Value) int64 {
	n, _ := value.(int64)
	return n
}

// encodeInts encodes numbers as zig-zag varints.
func encodeInts(numbers []int64) []byte {
	packed := make([]byte, 0, 4*len(numbers))
	for _, n := range numbers {
		packed = binary.AppendVarint(packed, n)
	}
	return packed
}

// decodeInts is the inverse of encodeInts. It stops at invalid input.
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
