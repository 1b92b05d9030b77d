package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"time"

	"nar-herder/narinfo"
)

// Candidate is an item with files in the storage.
type Candidate struct {
	*Item
	// LastUsed is the last recorded use of its nar, or the zero time.
	LastUsed time.Time
}

// scanStep is how many rows a scan for candidates reads at a time.
const scanStep = 20_000

// Candidates returns stored items, without withdrawn and damaged ones, that were last used
// or added, whichever is later, in the interval [from, until). They are in insertion order.
// cursor starts at zero, and each call advances it. more is false at the end.
func (x *Index) Candidates(ctx context.Context, from, until time.Time, cursor *int64, limit int) (found []Candidate, more bool, err error) {
	const query = `SELECT i.id, n.hash, i.added_at, i.stored_files, i.file_sizes, n.dictionary, n.text, n.checksum, n.withdrawn_at, i.mirrored, i.key, n.delete_after, i.verified_at, i.origin, i.fresh_until, i.dropped_files, i.drop_after, u.last_used
		FROM items i JOIN narinfos n ON n.id = i.id LEFT JOIN uses u ON u.item = i.id
		WHERE i.id > ? AND i.id <= ? AND i.stored_files != 0 AND max(i.added_at, coalesce(u.last_used, 0)) BETWEEN ? AND ? AND n.withdrawn_at IS NULL
		ORDER BY i.id LIMIT ?`
	err = x.readers.do(ctx, func(c *connection) error {
		last, err := c.integer("SELECT coalesce(max(id), 0) FROM items")
		if err != nil {
			return err
		}
		end, read, seen := *cursor+scanStep, 0, int64(0)
		err = c.rows(query, []driver.Value{*cursor, end, earliest(from), until.UnixMilli() - 1, int64(limit)}, func(row []driver.Value) (bool, error) {
			read, seen = read+1, row[0].(int64)
			item, err := x.item(row)
			if errors.Is(err, ErrDamaged) {
				return true, nil // keep it, and don't let it stop the removal of others
			}
			candidate := Candidate{Item: item}
			if used, ok := row[17].(int64); ok {
				candidate.LastUsed = time.UnixMilli(used).UTC()
			}
			found = append(found, candidate)
			return true, err
		})
		if err != nil {
			return err
		}
		if read == limit {
			end = seen
		}
		*cursor, more = end, end < last
		return nil
	})
	if err != nil {
		return nil, false, describe("look for candidates in "+x.path, err)
	}
	return found, more, nil
}

// earliest returns a time in milliseconds. The zero time sorts before all others.
func earliest(t time.Time) int64 {
	if t.IsZero() {
		return math.MinInt64
	}
	return t.UnixMilli()
}

// IsReferredTo reports whether another item, not withdrawn, refers to this one. With
// stored, only items with stored files count.
func (x *Index) IsReferredTo(ctx context.Context, hash narinfo.PathHash, stored bool) (some bool, err error) {
	query := "SELECT n.hash, n.refs FROM items i JOIN narinfos n ON n.id = i.id WHERE i.id = ? AND n.withdrawn_at IS NULL"
	if stored {
		query += " AND i.stored_files != 0"
	}
	target := keyOf(hash)
	err = x.readers.do(ctx, func(c *connection) (err error) {
		if err := c.exec("BEGIN"); err != nil {
			return err
		}
		defer func() {
			if end := c.exec("COMMIT"); err == nil {
				err = end
			}
		}()
		ids, err := c.referrersOf(target)
		if err != nil {
			return err
		}
		for _, id := range ids {
			row, err := c.first(query, id)
			if err != nil {
				return err
			}
			if row == nil || !refersTo(blob(row[1]), target) {
				continue
			}
			if referrer, err := hashOf(row[0]); err != nil {
				return err
			} else if referrer != hash {
				some = true
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return false, describe(fmt.Sprintf("read the referrers of %s in %s", hash, x.path), err)
	}
	return some, nil
}

// LastChange returns the number of the newest change.
func (x *Index) LastChange(ctx context.Context) (id int64, err error) {
	err = x.readers.do(ctx, func(c *connection) error {
		id, err = c.integer(lastChange)
		return err
	})
	if err != nil {
		return 0, describe("read the changes of "+x.path, err)
	}
	return id, nil
}

// LastChange returns the number of the newest change, including those of this transaction.
func (tx *Tx) LastChange() (int64, error) { return tx.conn.integer(lastChange) }

// ChangedSince returns the items that have changed after the change id, and the number of
// the newest change. If complete is false, any item may have changed: there are too many
// changes, or the log doesn't reach back that far.
func (tx *Tx) ChangedSince(id int64) (changed map[narinfo.PathHash]ChangeKind, last int64, complete bool, err error) {
	return tx.conn.changedSince(id)
}

func (c *connection) changedSince(id int64) (changed map[narinfo.PathHash]ChangeKind, last int64, complete bool, err error) {
	if last, err = c.integer(lastChange); err != nil {
		return nil, 0, false, err
	}
	if last == id {
		return nil, last, true, nil
	}
	changes, err := c.changes(id, maxPolled)
	if err != nil {
		return nil, 0, false, err
	}
	changed = make(map[narinfo.PathHash]ChangeKind, len(changes))
	var count int64
	for _, change := range changes {
		if change.ID <= last {
			count++
		}
		if changed[change.Hash] != Added { // which implies the other kinds
			changed[change.Hash] = change.Kind
		}
	}
	// Ids have no gaps.
	return changed, last, count == last-id, nil
}

// Unstore records that no file of an item with the narinfo n is stored any more. The item
// must be current in this transaction; see [Tx.ChangedSince].
func (tx *Tx) Unstore(item *Item, n *narinfo.Narinfo, at time.Time) error {
	size, err := storedSize(n, item.Stored, item.Sizes)
	if err != nil {
		return err
	}
	tx.count(item.Stored, size, -1)
	if err := tx.conn.exec("UPDATE items SET stored_files = 0, stored_size = 0, verified_at = 0, drop_after = 0 WHERE id = ?", item.id); err != nil {
		return err
	}
	return tx.log(StorageChanged, at, item.Hash, nil)
}
