package index

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"time"

	"nar-herder/narinfo"
)

// FindDamage scans the database and yields damaged dictionaries, items, cached files,
// changes and orphaned narinfos. It also finds items with a valid text that can't be found
// by their hash or have wrong references. It calls scanned after each item.
func (x *Index) FindDamage(ctx context.Context, scanned func()) iter.Seq2[*Damage, error] {
	return func(yield func(*Damage, error) bool) {
		for _, id := range x.codec.damaged {
			x.damages.add()
			if !yield(&Damage{Dictionary: id, Reason: differs}, nil) {
				return
			}
		}
		for last := int64(-1); ; {
			read := 0
			var found []*Damage
			err := x.readers.do(ctx, func(c *connection) error {
				return c.rows(itemColumns+" WHERE i.id > ? ORDER BY i.id LIMIT ?", []driver.Value{last, int64(listStep)}, func(row []driver.Value) (bool, error) {
					read, last = read+1, row[0].(int64)
					item, err := x.item(row)
					if err == nil {
						err = x.checkRow(c, item)
					}
					var damage *Damage
					if errors.As(err, &damage) {
						if hash, ok := x.writtenHash(row); ok {
							damage.Hash = hash
						}
						found, err = append(found, damage), nil
					}
					return true, err
				})
			})
			if err != nil {
				yield(nil, describe("look for damage in "+x.path, err))
				return
			}
			for range read {
				scanned()
			}
			for _, damage := range found {
				if !yield(damage, nil) {
					return
				}
			}
			if read < listStep {
				break
			}
		}
		if x.findCached(ctx, yield) && x.findChanges(ctx, yield) {
			x.findOrphans(ctx, yield)
		}
	}
}

// findCached yields damaged rows of cached files. It returns false if yield does.
func (x *Index) findCached(ctx context.Context, yield func(*Damage, error) bool) bool {
	var found []*Damage
	err := x.readers.do(ctx, func(c *connection) error {
		return c.rows("SELECT n.hash, c.type, c.size, c.checksum, c.item FROM cached_files c JOIN narinfos n ON n.id = c.item WHERE c.checksum IS NOT NULL", nil, func(row []driver.Value) (bool, error) {
			hash, err := hashOf(row[0])
			kind, _ := row[1].(string)
			if err == nil && row[3] != checksumOfCached(hash, kind, number(row[2])) {
				x.damages.add()
				found = append(found, &Damage{Hash: hash, Cached: kind, Reason: "the row of its cached file " + kind + " differs from what was written", id: number(row[4])})
			}
			return true, nil
		})
	})
	if err != nil {
		return yield(nil, describe("look for damage in "+x.path, err))
	}
	for _, damage := range found {
		if !yield(damage, nil) {
			return false
		}
	}
	return true
}

// writtenHash returns the hash in the text of a row of itemColumns, if the text matches its
// checksum. The column with the hash may be damaged.
func (x *Index) writtenHash(row []driver.Value) (hash narinfo.PathHash, ok bool) {
	dictionary, ok := row[5].(int64)
	if !ok {
		return hash, false
	}
	text, err := x.codec.decompress(dictionary, blob(row[6]))
	if err != nil {
		return hash, false
	}
	n, err := narinfo.Parse(text)
	if err != nil || row[7] != checksumOf(n.StorePath.Hash, text) {
		return hash, false
	}
	return n.StorePath.Hash, true
}

// checkRow compares the item's other columns with its text.
func (x *Index) checkRow(c *connection, item *Item) error {
	n, err := narinfo.Parse(item.Text)
	if err != nil {
		return x.damaged(item.Hash, item.id, err.Error())
	}
	// Check all access paths of a request: added_at is only in the table, not in the index.
	row, err := c.first("SELECT i.id, i.added_at, n.refs FROM items i INDEXED BY items_by_key JOIN narinfos n ON n.id = i.id WHERE i.key = ?", keyOf(item.Hash))
	switch {
	case err != nil:
		return x.damaged(item.Hash, item.id, err.Error())
	case row == nil || row[0] != item.id:
		return x.damaged(item.Hash, item.id, "it can't be found by its hash")
	case !bytes.Equal(blob(row[2]), referencesColumn(n)):
		return x.damaged(item.Hash, item.id, "its references differ from its text")
	}
	return nil
}

// findChanges yields damaged changes. It returns false if yield does.
func (x *Index) findChanges(ctx context.Context, yield func(*Damage, error) bool) bool {
	for after, more := int64(0), true; more; {
		var found []*Damage
		err := x.readers.do(ctx, func(c *connection) error {
			more = false
			return c.rows("SELECT id, at, kind, hash, store_path FROM recent_changes WHERE id > ? ORDER BY id LIMIT ?", []driver.Value{after, int64(referringStep)}, func(row []driver.Value) (bool, error) {
				after, more = row[0].(int64), true
				if _, err := changeOf(row); err != nil {
					x.damages.add()
					found = append(found, &Damage{Change: after, Reason: differs})
				}
				return true, nil
			})
		})
		if err != nil {
			return yield(nil, describe("look for damage in "+x.path, err))
		}
		for _, damage := range found {
			if !yield(damage, nil) {
				return false
			}
		}
	}
	return true
}

// findOrphans yields narinfos that no item has.
func (x *Index) findOrphans(ctx context.Context, yield func(*Damage, error) bool) {
	var found []*Damage
	err := x.readers.do(ctx, func(c *connection) error {
		return c.rows("SELECT hash, id FROM narinfos WHERE id NOT IN (SELECT id FROM items) LIMIT ?", []driver.Value{int64(listStep)}, func(row []driver.Value) (bool, error) {
			hash, _ := hashOf(row[0])
			found = append(found, &Damage{Hash: hash, Reason: "no item has it", orphan: row[1].(int64)})
			return true, nil
		})
	})
	if err != nil {
		yield(nil, describe("look for damage in "+x.path, err))
		return
	}
	for _, damage := range found {
		x.damages.add()
		if !yield(damage, nil) {
			return
		}
	}
}

// Mend repairs damage if the original value is certain: from the database itself, or from a
// text of the item that another instance has, if that matches the checksum. text may be
// nil, and may end with further lines, which other instances append.
func (tx *Tx) Mend(damage *Damage, text []byte) (mended bool, err error) {
	if damage.Dictionary != 0 {
		return tx.mendDictionary(damage.Dictionary)
	}
	if damage.Change != 0 {
		// A mirror that lacks it notices with its next dump.
		return true, tx.conn.exec("DELETE FROM recent_changes WHERE id = ?", damage.Change)
	}
	if damage.Cached != "" {
		// It is created again when it is requested.
		return true, tx.conn.exec("DELETE FROM cached_files WHERE item = ? AND type = ?", damage.id, damage.Cached)
	}
	if damage.orphan != 0 {
		if _, err := tx.Item(damage.Hash); err != nil {
			return false, nil // it may be the only remaining row
		}
		return true, tx.conn.exec("DELETE FROM narinfos WHERE id = ?", damage.orphan)
	}
	id := damage.id
	if id == 0 {
		if err := tx.conn.exec("REINDEX items_by_key"); err != nil {
			return false, err
		}
		row, err := tx.conn.first("SELECT id FROM items WHERE key = ?", keyOf(damage.Hash))
		if err != nil || row == nil {
			return false, err
		}
		id = row[0].(int64)
	}
	row, err := tx.conn.first("SELECT dictionary, text, checksum FROM narinfos WHERE id = ?", id)
	if err != nil || row == nil {
		return false, err
	}
	var own []byte
	if dictionary, ok := row[0].(int64); ok {
		own, _ = tx.x.codec.decompress(dictionary, blob(row[1]))
	}
	checksum, hasChecksum := row[2].(int64)
	for i, candidate := range append([][]byte{own}, prefixes(text)...) {
		n, err := narinfo.Parse(candidate)
		if err != nil {
			continue
		}
		isWritten := hasChecksum && checksumOf(n.StorePath.Hash, n.Text) == checksum
		// In this case the checksum is damaged.
		isOwn := i == 0 && n.StorePath.Hash == damage.Hash && bytes.HasPrefix(text, own)
		if !isWritten && !isOwn {
			continue
		}
		return true, errors.Join(tx.rewrite(id, tx.x.Prepare(n)), tx.logMended(id, n.StorePath.Hash))
	}
	return false, nil
}

// logMended logs an addition for mirrors that have skipped the damaged item.
func (tx *Tx) logMended(id int64, hash narinfo.PathHash) error {
	withdrawn, err := tx.conn.integer("SELECT withdrawn_at IS NOT NULL FROM narinfos WHERE id = ?", id)
	if err != nil || withdrawn != 0 {
		return err
	}
	return tx.log(Added, time.Now(), hash, nil)
}

// prefixes returns the prefixes of a text that end with a newline, the longest first.
func prefixes(text []byte) (all [][]byte) {
	for len(text) > 0 {
		all = append(all, text)
		text = text[:bytes.LastIndexByte(text[:len(text)-1], '\n')+1]
	}
	return all
}

// rewrite writes the narinfo of an item and the columns derived from it.
func (tx *Tx) rewrite(id int64, entry *Entry) error {
	n := entry.Narinfo
	key := keyOf(n.StorePath.Hash)
	row, err := tx.conn.first(`SELECT key, (SELECT id FROM items INDEXED BY items_by_key WHERE key = ?),
		(SELECT withdrawn_at FROM narinfos WHERE id = ?), (SELECT delete_after FROM narinfos WHERE id = ?) FROM items WHERE id = ?`, key, id, id, id)
	if err != nil {
		return err
	}
	if row == nil {
		return fmt.Errorf("%w: the item has no row", ErrDamaged)
	}
	withdrawn, due := row[2], row[3]
	if at, err := withdrawnAt(withdrawn); err != nil {
		withdrawn, due = nil, nil
	} else {
		// The recorded time may be damaged; a later one is safe.
		expiry, err := tx.Expiry(Narinfos, at.Add(answersKept))
		if err != nil {
			return err
		}
		due = max(number(due), milliseconds(expiry))
	}
	if row[1] != id || row[0] != key {
		err = errors.Join(tx.conn.exec("REINDEX items_by_key"), tx.conn.exec("UPDATE items SET key = ? WHERE id = ?", key, id))
	}
	tx.refer(id, n)
	return errors.Join(err, tx.conn.exec("INSERT OR REPLACE INTO narinfos (id, hash, refs, dictionary, text, checksum, withdrawn_at, delete_after) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		id, n.StorePath.Hash[:], referencesColumn(n), entry.dictionary, entry.compressed, entry.checksum, withdrawn, due))
}

// mendDictionary restores the built-in dictionary, if it is the damaged one.
func (tx *Tx) mendDictionary(id int64) (bool, error) {
	row, err := tx.conn.first("SELECT content, checksum FROM dictionaries WHERE id = ?", id)
	if err != nil || row == nil || id != builtinID {
		return false, err
	}
	checksum := checksumOfDictionary(builtinDictionary)
	if row[1] != checksum && !bytes.Equal(blob(row[0]), builtinDictionary) {
		return false, nil
	}
	return true, tx.conn.exec("UPDATE dictionaries SET content = ?, checksum = ? WHERE id = ?", builtinDictionary, checksum, id)
}

// Renew replaces a damaged text by the text of an entry, and returns the row. If the new
// text is not the original one, Renew clears the record of stored files.
func (tx *Tx) Renew(damage *Damage, entry *Entry) (*Item, error) {
	hash := entry.Narinfo.StorePath.Hash
	mended, err := tx.Mend(damage, entry.Narinfo.Text)
	if err != nil {
		return nil, err
	}
	if !mended {
		if damage.id == 0 {
			return nil, damage
		}
		row, err := tx.conn.first("SELECT stored_files, stored_size FROM items WHERE id = ?", damage.id)
		if err != nil {
			return nil, err
		}
		if row != nil {
			tx.change.StoredNars -= int64(bits.OnesCount64(uint64(number(row[0]))))
			tx.change.StoredSize -= number(row[1])
		}
		err = errors.Join(
			tx.rewrite(damage.id, entry),
			tx.conn.exec("UPDATE items SET stored_files = 0, stored_size = 0, file_sizes = NULL, verified_at = 0, dropped_files = 0, drop_after = 0 WHERE id = ?", damage.id),
			tx.conn.exec("DELETE FROM cached_files WHERE item = ?", damage.id),
			tx.conn.exec("DELETE FROM checksums WHERE item = ?", damage.id),
			tx.logAddition(entry))
		if err != nil {
			return nil, err
		}
	}
	return tx.Item(hash)
}
