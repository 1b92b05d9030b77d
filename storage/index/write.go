package index

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/narinfo"
)

// Entry is an item that [Index.Prepare] has prepared for writing.
type Entry struct {
	Narinfo *narinfo.Narinfo
	// AddedAt, Stored and Sizes are as in [Item]. A known item keeps its AddedAt; the time
	// of the change is then this one.
	AddedAt time.Time
	Stored  uint64
	Sizes   []int64
	// Dropped is as in [Item]. A file of a known item that was dropped stays dropped, unless
	// Stored has it. Not all files can be dropped.
	Dropped uint64
	// VerifiedAt is as in [Item], also for a known item.
	VerifiedAt time.Time
	// Mirrored means that the mirrored instance has the item. A known item stays mirrored.
	Mirrored bool
	// Origin and FreshUntil are as in [Item], also for a known item: importing or mirroring an
	// item makes it one that is not of an upstream any more.
	Origin     int64
	FreshUntil time.Time
	// Unlogged omits the addition from the recent changes.
	Unlogged bool

	dictionary int64
	compressed []byte
	checksum   int64
}

// Prepare does the work of writing an item that needs no database, so that it can run
// outside a transaction.
func (x *Index) Prepare(n *narinfo.Narinfo) *Entry {
	entry := &Entry{Narinfo: n, checksum: checksumOf(n.StorePath.Hash, n.Text)}
	entry.dictionary, entry.compressed = x.codec.compress(n.Text)
	return entry
}

// Update runs f in a transaction. If it returns nil, the transaction is committed and
// flushed to the disk; if f or the commit fails, nothing has changed. Other writers, also
// in other processes, wait meanwhile, so f should take well under a second. If the context
// ends, Update stops waiting for others.
func (x *Index) Update(ctx context.Context, f func(*Tx) error) error {
	if err := x.requireReserve(ctx); err != nil {
		return err
	}
	if err := x.update(ctx, f); err != nil {
		return err
	}
	x.checkpointUsed(ctx)
	return nil
}

// update is Update without the check of the reserve.
func (x *Index) update(ctx context.Context, f func(*Tx) error) error {
	done, err := x.write(ctx)
	if err != nil {
		return err
	}
	defer done()
	if err := x.writer.begin(); err != nil {
		return describe("lock "+x.path+" for writing", err)
	}
	tx := &Tx{x: x, conn: x.writer}
	committed := false
	defer func() {
		if !committed { // also when f panics
			// This fails if SQLite has rolled back by itself; err has the cause.
			_ = x.writer.rollback()
		}
	}()
	if err := f(tx); err != nil {
		return describe("write to "+x.path, err)
	}
	if err := errors.Join(tx.flushEdges(), tx.flushTotals()); err != nil {
		return describe("write to "+x.path, err)
	}
	if err := x.writer.exec("COMMIT"); err != nil {
		return describe("commit to "+x.path, err)
	}
	committed = true
	x.removed.Add(tx.removed)
	x.writer.transaction = false
	return nil
}

// IsReadOnly reports whether the index was opened with [Read].
func (x *Index) IsReadOnly() bool { return !x.IsFull() && x.writer == nil }

// View runs f in a read transaction: f sees a single snapshot. Writes fail.
func (x *Index) View(ctx context.Context, f func(*Tx) error) error {
	err := x.readers.do(ctx, func(c *connection) (err error) {
		if err := c.exec("BEGIN"); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.exec("COMMIT")) }()
		return f(&Tx{x: x, conn: c})
	})
	if err != nil {
		return describe("read "+x.path, err)
	}
	return nil
}

// write acquires the writer connection until done is called.
func (x *Index) write(ctx context.Context) (done func(), err error) {
	if x.IsFull() {
		return nil, fmt.Errorf("%w: write to %s: it was opened for reading only, because its file system is full: make room there", ErrFull, x.path)
	}
	if x.writer == nil {
		return nil, fmt.Errorf("%w: %s was opened for reading only", ErrReadOnly, x.path)
	}
	select {
	case x.writing <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	done = func() { <-x.writing }
	if err := ctx.Err(); err != nil {
		done()
		return nil, err
	}
	x.writer.ctx = ctx
	return done, nil
}

// SetBulk turns [Options.Bulk] on or off. It costs memory and disk space. Turning it off
// runs a checkpoint, which stops if the context ends.
func (x *Index) SetBulk(ctx context.Context, on bool) error {
	done, err := x.write(ctx)
	if err != nil {
		return err
	}
	defer done()
	log, cache := int64(checkpointBytes), int64(defaultWriterCache)
	if on {
		log, cache = bulkCheckpointBytes, bulkCache
	}
	err = x.writer.script(fmt.Sprintf("PRAGMA wal_autocheckpoint = %d; PRAGMA cache_size = -%d", x.maxLog(log)/pageSize, cache/1024))
	if err == nil && !on {
		err = x.writer.execContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)")
	}
	if err != nil {
		return describe("change how "+x.path+" is written", err)
	}
	return nil
}

// bulkCache is the writer's page cache in bytes after [Index.SetBulk].
const bulkCache = 32 << 20

// Tx is a transaction. It is valid until the function passed to [Index.Update] or
// [Index.View] returns.
type Tx struct {
	x    *Index
	conn *connection
	// edges collects the references of written items, to be written together.
	edges  []edge
	change Totals
	// removed counts the items that Remove has deleted.
	removed int64
}

// Item returns the item's row within this transaction, or [ErrNotFound].
func (tx *Tx) Item(hash narinfo.PathHash) (*Item, error) {
	return tx.x.itemFrom(tx.conn, hash)
}

// Totals returns the sums, including the changes of this transaction.
func (tx *Tx) Totals() (Totals, error) {
	totals, err := tx.conn.totals()
	totals.Items += tx.change.Items
	totals.StoredNars += tx.change.StoredNars
	totals.StoredSize += tx.change.StoredSize
	return totals, err
}

// Put writes a new item, or the new text and state of a known one, and adds the addition to
// the recent changes. old is the result of [Tx.Item] in this transaction, nil if that was
// ErrNotFound.
func (tx *Tx) Put(entry *Entry, old *Item) error {
	n := entry.Narinfo
	size, err := storedSize(n, entry.Stored, entry.Sizes)
	if err != nil {
		return err
	}
	var before *narinfo.Narinfo
	var oldSize int64
	if old != nil {
		if before, oldSize, err = old.parsed(); err != nil {
			return err
		}
	}
	dropped, due, err := tx.putDropped(entry, old, before)
	if err != nil {
		return err
	}
	tx.count(entry.Stored, size, 1)
	if old != nil {
		tx.count(old.Stored, oldSize, -1)
		if before.NarHash != n.NarHash {
			// They belong to the replaced nar.
			err := errors.Join(
				tx.conn.exec("DELETE FROM cached_files WHERE item = ?", old.id),
				tx.conn.exec("DELETE FROM checksums WHERE item = ?", old.id))
			if err != nil {
				return err
			}
		}
		err = errors.Join(
			tx.conn.exec("UPDATE items SET stored_files = ?, stored_size = ?, file_sizes = ?, verified_at = ?, mirrored = ?, origin = ?, fresh_until = ?, dropped_files = ?, drop_after = ? WHERE id = ?",
				int64(entry.Stored), size, sizesColumn(entry.Sizes), timeColumn(entry.VerifiedAt), boolValue(entry.Mirrored || old.Mirrored),
				entry.Origin, timeColumn(entry.FreshUntil), int64(dropped), due, old.id),
			tx.foundAgain(old, entry.Stored, before.NarHash != n.NarHash),
			tx.conn.exec("UPDATE narinfos SET refs = ?, dictionary = ?, text = ?, checksum = ?, withdrawn_at = NULL, delete_after = NULL WHERE id = ?",
				referencesColumn(n), entry.dictionary, entry.compressed, entry.checksum, old.id))
		if err != nil {
			return err
		}
		tx.refer(old.id, n)
		// Don't log the item's own time: mirrors that follow the log by time may be past
		// it.
		return tx.logAddition(entry)
	}
	id, err := tx.conn.insert(insertItem+" VALUES (?, ?, ?, ?, ?, ?, ?, ?)", appendItemRow(nil, nil, entry, size)...)
	if isDuplicate(err) {
		return fmt.Errorf("insert %s: another item has the same first 64 bits: %w", n.StorePath.Hash, err)
	} else if err != nil {
		return fmt.Errorf("insert %s: %w", n.StorePath.Hash, err)
	}
	if err := tx.conn.exec(insertNarinfo+" VALUES (?, ?, ?, ?, ?, ?)", appendNarinfoRow(nil, id, entry, referencesColumn(n))...); err != nil {
		return err
	}
	tx.change.Items++
	tx.refer(id, n)
	if dropped != 0 {
		if err := tx.conn.exec("UPDATE items SET dropped_files = ?, drop_after = ? WHERE id = ?", int64(dropped), due, id); err != nil {
			return err
		}
	}
	if entry.Origin != 0 {
		if err := tx.SetOrigin(n.StorePath.Hash, entry.Origin, entry.FreshUntil); err != nil {
			return err
		}
	}
	return tx.logAddition(entry)
}

// Widths of the rows that Put writes.
const (
	insertItem    = "INSERT INTO items (id, key, added_at, stored_files, stored_size, file_sizes, mirrored, verified_at)"
	insertNarinfo = "INSERT INTO narinfos (id, hash, refs, dictionary, text, checksum)"
)

// appendItemRow appends the row of an item. If id is nil, SQLite assigns the next one.
func appendItemRow(row []driver.Value, id driver.Value, entry *Entry, storedSize int64) []driver.Value {
	return append(row, id, keyOf(entry.Narinfo.StorePath.Hash), entry.AddedAt.Truncate(time.Second).UnixMilli(),
		int64(entry.Stored), storedSize, sizesColumn(entry.Sizes), boolValue(entry.Mirrored), timeColumn(entry.VerifiedAt))
}

func appendNarinfoRow(row []driver.Value, id int64, entry *Entry, references []byte) []driver.Value {
	return append(row, id, bytes.Clone(entry.Narinfo.StorePath.Hash[:]), references, entry.dictionary, entry.compressed, entry.checksum)
}

func referencesColumn(n *narinfo.Narinfo) []byte {
	references := make([]byte, 0, 8*len(n.References))
	for _, reference := range n.References {
		references = binary.BigEndian.AppendUint64(references, uint64(keyOf(reference.Hash)))
	}
	return references
}

// IsTaken reports whether an item that [Tx.Item] doesn't find can't be added, because another
// one has the same first 64 bits.
func (tx *Tx) IsTaken(hash narinfo.PathHash) (bool, error) {
	count, err := tx.conn.integer("SELECT count(*) FROM items WHERE key = ?", keyOf(hash))
	return count != 0, err
}

// isDuplicate reports whether a row violates a uniqueness constraint.
func isDuplicate(err error) bool {
	var failure *sqlite.Error
	return errors.As(err, &failure) && failure.Code() == sqlite3.SQLITE_CONSTRAINT_UNIQUE
}

func (tx *Tx) logAddition(entry *Entry) error {
	if entry.Unlogged {
		return nil
	}
	return tx.log(Added, entry.AddedAt, entry.Narinfo.StorePath.Hash, nil)
}

// SetMirrored records whether the mirrored instance has the item.
func (tx *Tx) SetMirrored(hash narinfo.PathHash, mirrored bool) error {
	return tx.conn.exec("UPDATE items SET mirrored = ? WHERE key = ?", boolValue(mirrored), keyOf(hash))
}

// boolValue converts a boolean to its SQLite value.
func boolValue(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// SetStored records which files of a known item are in the storage. Files that were not before
// were verified at the given time; the zero time means never. They are no longer dropped.
func (tx *Tx) SetStored(hash narinfo.PathHash, stored uint64, sizes []int64, verified time.Time) error {
	item, err := tx.Item(hash)
	if err != nil {
		return err
	}
	n, oldSize, err := item.parsed()
	if err != nil {
		return err
	}
	size, err := storedSize(n, stored, sizes)
	if err != nil {
		return err
	}
	tx.count(item.Stored, oldSize, -1)
	tx.count(stored, size, 1)
	switch added := stored &^ item.Stored; {
	case stored == 0:
		verified = time.Time{}
	case added == 0, item.Stored != 0 && item.VerifiedAt.Before(verified):
		verified = item.VerifiedAt
	}
	err = errors.Join(
		tx.conn.exec("UPDATE items SET stored_files = ?, stored_size = ?, file_sizes = ?, verified_at = ? WHERE id = ?",
			int64(stored), size, sizesColumn(sizes), timeColumn(verified), item.id),
		tx.foundAgain(item, stored, false))
	if err != nil {
		return err
	}
	if item.Dropped != 0 {
		return tx.writeDropped(item, n, stored, item.Dropped&^(stored&^item.Stored), time.Now())
	}
	return tx.log(StorageChanged, time.Now(), hash, nil)
}

// Remove deletes the item with its tags and uses. It adds a removal to the recent changes
// unless the item was withdrawn, which has logged one.
func (tx *Tx) Remove(hash narinfo.PathHash, at time.Time) error {
	item, err := tx.Item(hash)
	if err != nil {
		return err
	}
	n, size, err := item.parsed()
	if err != nil {
		return err
	}
	tx.count(item.Stored, size, -1)
	// Foreign keys delete the tags and uses.
	err = errors.Join(
		tx.conn.exec("DELETE FROM items WHERE id = ?", item.id),
		tx.conn.exec("DELETE FROM narinfos WHERE id = ?", item.id))
	if err != nil {
		return err
	}
	tx.change.Items--
	tx.removed++
	if !item.WithdrawnAt.IsZero() {
		return tx.log(StorageChanged, at, hash, nil)
	}
	return tx.log(Removed, at, hash, n.StorePath.String())
}

// AddTags adds tags to a known item. It ignores tags that the item has already.
func (tx *Tx) AddTags(hash narinfo.PathHash, tags []Tag) error {
	if len(tags) == 0 {
		return nil
	}
	item, err := tx.id(hash)
	if err != nil {
		return err
	}
	for _, tag := range tags {
		row, err := tx.conn.first(`INSERT INTO tags (key, value) VALUES (?, ?)
			ON CONFLICT DO UPDATE SET key = key RETURNING id`, tag.Key, tag.Value)
		if err != nil {
			return err
		}
		if err := tx.conn.exec("INSERT INTO item_tags VALUES (?, ?) ON CONFLICT DO NOTHING", item, row[0]); err != nil {
			return err
		}
	}
	return nil
}

// RemoveTag removes a tag from a known item, and reports whether the item had it.
func (tx *Tx) RemoveTag(hash narinfo.PathHash, tag Tag) (bool, error) {
	item, err := tx.id(hash)
	if err != nil {
		return false, err
	}
	had, err := tx.Tags(hash)
	if err != nil || !slices.Contains(had, tag) {
		return false, err
	}
	return true, tx.conn.exec("DELETE FROM item_tags WHERE item = ? AND tag = (SELECT id FROM tags WHERE key = ? AND value = ?)", item, tag.Key, tag.Value)
}

// Missing returns the paths that have no narinfo in the index.
func (tx *Tx) Missing(paths []narinfo.StorePath) ([]narinfo.StorePath, error) {
	return tx.conn.missing(paths, notWithdrawn)
}

// count adds files of an item to the totals, or subtracts them if sign is negative.
func (tx *Tx) count(stored uint64, size int64, sign int64) {
	for ; stored != 0; stored &= stored - 1 {
		tx.change.StoredNars += sign
	}
	tx.change.StoredSize += sign * size
}

func (tx *Tx) flushTotals() error {
	if tx.change == (Totals{}) {
		return nil
	}
	return tx.conn.exec("UPDATE totals SET items = items + ?, stored_nars = stored_nars + ?, stored_size = stored_size + ?",
		tx.change.Items, tx.change.StoredNars, tx.change.StoredSize)
}

// PutChange appends a change of another instance to the log. Only its ID is replaced by the
// next one.
func (tx *Tx) PutChange(change Change) error {
	var storePath driver.Value
	if change.StorePath != "" {
		storePath = change.StorePath
	}
	return tx.log(change.Kind, change.At, change.Hash, storePath)
}

// log appends a change to the log. storePath is nil or a string.
func (tx *Tx) log(kind ChangeKind, at time.Time, hash narinfo.PathHash, storePath driver.Value) error {
	return tx.conn.exec("INSERT INTO recent_changes (at, kind, hash, store_path) VALUES (?, ?, ?, ?)",
		at.UnixMilli(), int64(kind), hash[:], storePath)
}

// parsed returns the item's narinfo, and the total size of its stored files.
func (i *Item) parsed() (*narinfo.Narinfo, int64, error) {
	n, err := narinfo.Parse(i.Text)
	if err != nil {
		return nil, 0, fmt.Errorf("the narinfo of %s in the database: %w", i.Hash, err)
	}
	size, err := storedSize(n, i.Stored, i.Sizes)
	return n, size, err
}

// FileSize returns the length in bytes of the narinfo's Nth file: its FileSize, or else the
// size in sizes, as in [Item]. It is -1 if neither is known.
func FileSize(n *narinfo.Narinfo, file int, sizes []int64) int64 {
	if size := n.Files[file].Size; size >= 0 {
		return size
	}
	if file < len(sizes) {
		return sizes[file]
	}
	return -1
}

// storedSize returns the total length in bytes of the narinfo's stored files.
func storedSize(n *narinfo.Narinfo, stored uint64, sizes []int64) (total int64, err error) {
	for i := range n.Files {
		if i >= 64 || stored&(1<<i) == 0 {
			continue
		}
		size := FileSize(n, i, sizes)
		if size < 0 {
			return 0, fmt.Errorf("%s: file %s is recorded as stored, but its size is not known", n.StorePath, n.Files[i].URL)
		}
		total += size
	}
	return total, nil
}

func sizesColumn(sizes []int64) driver.Value {
	if sizes == nil {
		return nil
	}
	return encodeInts(sizes)
}
