package index

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"time"

	"nar-herder/internal/stamp"
	"nar-herder/narinfo"
)

// ErrAllDropped says that an item would have no file left.
var ErrAllDropped = errors.New("all files of the item would be dropped")

// dropReserve is how long the transaction that drops files may take: until then, clients get
// narinfos that name them.
const dropReserve = time.Minute

// Announced returns the narinfo as clients and mirrors get it: without the unsigned blocks of
// dropped files. It is Text itself for most items.
func (i *Item) Announced() []byte { return announced(i.Text, i.Dropped) }

// announced returns the text without the unsigned blocks of dropped files. It ignores damage:
// a text that can't be parsed, and files that it doesn't name.
func announced(text []byte, dropped uint64) []byte {
	if dropped == 0 {
		return text
	}
	n, err := narinfo.Parse(text)
	if err != nil {
		return text
	}
	return n.WithoutFiles(dropped)
}

// allFiles has the bit of each file of a narinfo.
func allFiles(n *narinfo.Narinfo) uint64 { return 1<<len(n.Files) - 1 }

// SetDropped records which files of a known item are dropped, in place of the former ones:
// bit N stands for the narinfo's Nth file. From the end of the transaction on, unsigned blocks
// of dropped files are no longer announced, to mirrors either. Dropped files that are stored
// may be deleted when no client can hold a narinfo that was served until then; see
// [Item.DropAfter]. The stored text stays complete.
//
// The error is [ErrAllDropped] if no file would be left.
func (tx *Tx) SetDropped(hash narinfo.PathHash, dropped uint64, at time.Time) error {
	item, err := tx.Item(hash)
	if err != nil {
		return err
	}
	if item.Dropped == dropped {
		return nil
	}
	n, err := narinfo.Parse(item.Text)
	if err != nil {
		return err
	}
	if err := checkDropped(n, dropped); err != nil {
		return err
	}
	return tx.writeDropped(item, n, item.Stored, dropped, at)
}

// writeDropped is SetDropped for an item whose stored files are changing to stored. It logs a
// change.
func (tx *Tx) writeDropped(item *Item, n *narinfo.Narinfo, stored, dropped uint64, at time.Time) error {
	var known *time.Time
	if dropped&^item.Dropped == 0 {
		known = &item.DropAfter
	}
	due, err := tx.dropAfter(stored&dropped, known, at)
	if err != nil {
		return err
	}
	if err := tx.conn.exec("UPDATE items SET dropped_files = ?, drop_after = ? WHERE id = ?", int64(dropped), due, item.id); err != nil {
		return err
	}
	kind := StorageChanged
	if item.WithdrawnAt.IsZero() && !bytes.Equal(n.WithoutFiles(dropped), n.WithoutFiles(item.Dropped)) {
		kind = Added
	}
	return tx.log(kind, at, item.Hash, nil)
}

// checkDropped returns an error unless the files are some of the narinfo's, and not all.
func checkDropped(n *narinfo.Narinfo, dropped uint64) error {
	switch all := allFiles(n); {
	case dropped&^all != 0:
		return fmt.Errorf("%s has only %d files", n.StorePath, len(n.Files))
	case dropped == all:
		return fmt.Errorf("%s: %w", n.StorePath, ErrAllDropped)
	}
	return nil
}

// dropAfter returns the value of the column drop_after for dropped files that are stored.
// known is the time that was recorded for them before; nil for none.
func (tx *Tx) dropAfter(pending uint64, known *time.Time, at time.Time) (int64, error) {
	if pending == 0 {
		return 0, nil
	}
	if known != nil && !known.IsZero() {
		return known.UnixMilli(), nil
	}
	due, err := tx.DroppedAfter(at)
	return milliseconds(due), err
}

// DroppedAfter returns when files that are dropped at the given time may be deleted.
func (tx *Tx) DroppedAfter(at time.Time) (time.Time, error) {
	return tx.Expiry(Narinfos, at.Add(dropReserve))
}

// putDropped returns which files of an entry are dropped, and the column drop_after. A file of
// the same nar that was dropped stays dropped, unless it is stored: then the entry says so.
func (tx *Tx) putDropped(entry *Entry, old *Item, before *narinfo.Narinfo) (dropped uint64, due int64, err error) {
	n := entry.Narinfo
	if err := checkDropped(n, entry.Dropped); err != nil {
		return 0, 0, err
	}
	dropped = entry.Dropped
	var known *time.Time
	if old != nil && old.Dropped != 0 && before.NarHash == n.NarHash {
		known = &old.DropAfter
		if all := dropped | droppedIn(n, old.Dropped, before)&^entry.Stored; all != allFiles(n) {
			dropped = all
		}
	}
	due, err = tx.dropAfter(entry.Stored&dropped, known, time.Now())
	return dropped, due, err
}

// droppedIn returns the files of n that have the names of dropped files of another narinfo.
func droppedIn(n *narinfo.Narinfo, dropped uint64, of *narinfo.Narinfo) (files uint64) {
	names := make(map[string]bool)
	for i, file := range of.Files {
		if name, err := file.Path(); err == nil && dropped&(1<<i) != 0 {
			names[name] = true
		}
	}
	for i, file := range n.Files {
		if name, err := file.Path(); err == nil && names[name] {
			files |= 1 << i
		}
	}
	return files
}

// DroppedCursor is a position in the items with dropped files to delete, ordered by time. The
// zero value is before the first item.
type DroppedCursor struct {
	at, id int64
	isSet  bool
}

// DroppedPage returns undamaged items after the cursor with dropped files that may be deleted
// at the given time, the earliest first, and advances the cursor. more is true if others may
// follow. Times from before the clock was set are treated as in [Index.DeletableItems].
func (x *Index) DroppedPage(ctx context.Context, now time.Time, cursor *DroppedCursor, limit int) (items []*Item, more bool, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		if !cursor.isSet {
			*cursor = DroppedCursor{at: stamp.Earliest(now).UnixMilli(), id: math.MinInt64, isSet: true}
		}
		read := 0
		err := c.rows(itemColumns+" WHERE i.drop_after != 0 AND i.drop_after <= ? AND (i.drop_after, i.id) > (?, ?) ORDER BY i.drop_after, i.id LIMIT ?",
			[]driver.Value{now.UnixMilli(), cursor.at, cursor.id, int64(limit)}, func(row []driver.Value) (bool, error) {
				read++
				cursor.id, cursor.at = number(row[0]), number(row[16])
				item, err := x.item(row)
				if errors.Is(err, ErrDamaged) {
					return true, nil // its files are unknown
				}
				items = append(items, item)
				return true, err
			})
		more = read == limit
		return err
	})
	if err != nil {
		return nil, false, describe("list the items with dropped files in "+x.path, err)
	}
	return items, more, nil
}

// DroppedPending is about items with dropped files that are still stored.
type DroppedPending struct {
	Items int64
	// First and Last are when the first and the last of these files may be deleted; zero if
	// there are none.
	First, Last time.Time
}

// DroppedPending counts the items with dropped files that are still stored.
func (x *Index) DroppedPending(ctx context.Context) (pending DroppedPending, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		row, err := c.first("SELECT count(*), min(drop_after), max(drop_after) FROM items INDEXED BY items_droppable WHERE drop_after != 0")
		if err != nil || row == nil || number(row[0]) == 0 {
			return err
		}
		pending = DroppedPending{number(row[0]), time.UnixMilli(number(row[1])).UTC(), time.UnixMilli(number(row[2])).UTC()}
		return nil
	})
	if err != nil {
		return DroppedPending{}, describe("count the items with dropped files in "+x.path, err)
	}
	return pending, nil
}

// cutDropped makes the texts of a copy those that are announced: its readers don't know which
// files are dropped.
func (x *Index) cutDropped(ctx context.Context, c *connection) error {
	const query = `SELECT i.id, n.hash, n.dictionary, n.text, n.checksum, i.dropped_files FROM items i NOT INDEXED JOIN narinfos n ON n.id = i.id
		WHERE i.dropped_files != 0 AND i.id > ? ORDER BY i.id LIMIT ?`
	for last, more := int64(math.MinInt64), true; more; {
		type cut struct {
			id    int64
			entry *Entry
		}
		var cuts []cut
		read := 0
		err := c.rows(query, []driver.Value{last, int64(listStep)}, func(row []driver.Value) (bool, error) {
			read++
			last = number(row[0])
			hash, err := hashOf(row[1])
			if err != nil {
				return false, err
			}
			text, reason := x.codec.verified(hash, row[2], row[3], row[4])
			if reason != "" {
				return false, fmt.Errorf("%w: %s", ErrUnsound, reason)
			}
			n, err := narinfo.Parse(announced(text, uint64(number(row[5]))))
			if err == nil {
				cuts = append(cuts, cut{last, x.Prepare(n)})
			}
			return true, errors.Join(err, ctx.Err())
		})
		if err != nil {
			return err
		}
		for _, cut := range cuts {
			err := c.exec("UPDATE narinfos SET dictionary = ?, text = ?, checksum = ? WHERE id = ?", cut.entry.dictionary, cut.entry.compressed, cut.entry.checksum, cut.id)
			if err != nil {
				return err
			}
		}
		more = read == listStep
	}
	return c.exec("UPDATE items SET dropped_files = 0 WHERE dropped_files != 0")
}
