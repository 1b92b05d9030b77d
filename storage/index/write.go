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

// Entry is an item to be written, made ready outside of any transaction by
// [Index.Prepare].
type Entry struct {
	Narinfo *narinfo.Narinfo
	// AddedAt, Stored and Sizes are as in [Item]. An item that is known keeps
	// its AddedAt; this one is then the time of the change.
	AddedAt time.Time
	Stored  uint64
	Sizes   []int64
	// Mirrored says that the instance that this one mirrors has the item. One that
	// is known and mirrored stays so.
	Mirrored bool
	// Unlogged leaves the addition out of the recent changes.
	Unlogged bool

	dictionary int64
	compressed []byte
	checksum   int64
}

// Prepare does the part of writing an item that needs no database, so that it
// can be done beside a transaction.
func (x *Index) Prepare(n *narinfo.Narinfo) *Entry {
	entry := &Entry{Narinfo: n, checksum: checksumOf(n.StorePath.Hash, n.Text)}
	entry.dictionary, entry.compressed = x.codec.compress(n.Text)
	return entry
}

// Update runs f in a transaction of its own, which is committed, and safe on
// the disk, when Update returns nil, and leaves no trace when f or the commit
// fails. Other writers wait meanwhile, also those of other processes, so f is
// to take well under a second. When the context ends, Update stops waiting for
// others.
func (x *Index) Update(ctx context.Context, f func(*Tx) error) error {
	if err := x.refillReserve(ctx); err != nil {
		return err
	}
	if err := x.update(ctx, f); err != nil {
		return err
	}
	x.foldUsed(ctx)
	return nil
}

// update is Update without regard for the reserve.
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
			// SQLite may have rolled back by itself; then this fails, and err
			// says why.
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
	x.writer.transaction = false
	return nil
}

// IsReadOnly says whether the index was opened with [Read].
func (x *Index) IsReadOnly() bool { return !x.IsFull() && x.writer == nil }

// View runs f in a transaction that reads: all that f reads is of one moment. What
// writes fails.
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

// write lends the writer connection until done is called.
func (x *Index) write(ctx context.Context) (done func(), err error) {
	if x.IsFull() {
		return nil, fmt.Errorf("%w: write to %s: it was opened for reading alone, as there was no room for more: make room on its file system", ErrFull, x.path)
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

// Hurry is [Options.Bulk], for a while: until it is called with false. It costs
// memory and disk. When the context ends, it stops folding back the log.
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
	err = x.writer.script(fmt.Sprintf("PRAGMA wal_autocheckpoint = %d; PRAGMA cache_size = -%d", x.longestLog(log)/pageSize, cache/1024))
	if err == nil && !on {
		err = x.writer.execContext(ctx, "PRAGMA wal_checkpoint(PASSIVE)")
	}
	if err != nil {
		return describe("change how "+x.path+" is written", err)
	}
	return nil
}

// bulkCache is the writer's page cache then, in bytes.
const bulkCache = 32 << 20

// Tx is a transaction, good until the function given to [Index.Update] returns.
type Tx struct {
	x    *Index
	conn *connection
	// edges gathers who refers to whom, to be written together.
	edges  []edge
	change Totals
}

// Item returns the item's row as this transaction sees it, or [ErrNotFound].
func (tx *Tx) Item(hash narinfo.PathHash) (*Item, error) {
	return tx.x.itemFrom(tx.conn, hash)
}

// Totals are the sums as this transaction sees them, with its own changes.
func (tx *Tx) Totals() (Totals, error) {
	totals, err := tx.conn.totals()
	totals.Items += tx.change.Items
	totals.StoredNars += tx.change.StoredNars
	totals.StoredSize += tx.change.StoredSize
	return totals, err
}

// Put writes a new item, or the new text and state of a known one, and notes
// the addition in the recent changes. old is what [Tx.Item] gave for it in this
// transaction, nil when that was ErrNotFound.
func (tx *Tx) Put(entry *Entry, old *Item) error {
	n := entry.Narinfo
	size, err := storedSize(n, entry.Stored, entry.Sizes)
	if err != nil {
		return err
	}
	tx.count(entry.Stored, size, 1)
	if old != nil {
		before, oldSize, err := old.parsed()
		if err != nil {
			return err
		}
		tx.count(old.Stored, oldSize, -1)
		if before.NarHash != n.NarHash {
			// They are of the nar that is replaced.
			err := errors.Join(
				tx.conn.exec("DELETE FROM cached_files WHERE item = ?", old.id),
				tx.conn.exec("DELETE FROM checksums WHERE item = ?", old.id))
			if err != nil {
				return err
			}
		}
		err = errors.Join(
			tx.conn.exec("UPDATE items SET stored_files = ?, stored_size = ?, file_sizes = ?, mirrored = ? WHERE id = ?",
				int64(entry.Stored), size, sizesColumn(entry.Sizes), boolValue(entry.Mirrored || old.Mirrored), old.id),
			tx.conn.exec("UPDATE narinfos SET refs = ?, dictionary = ?, text = ?, checksum = ?, withdrawn_at = NULL, delete_after = NULL WHERE id = ?",
				referencesColumn(n), entry.dictionary, entry.compressed, entry.checksum, old.id))
		if err != nil {
			return err
		}
		tx.refer(old.id, n)
		// Not at the item's own time: who follows the log by time has passed it.
		return tx.logAddition(entry)
	}
	id, err := tx.conn.insert(insertItem+" VALUES (?, ?, ?, ?, ?, ?, ?)", appendItemRow(nil, nil, entry, size)...)
	if isDuplicate(err) {
		return fmt.Errorf("insert %s, whose first 64 bits no other item may have: %w", n.StorePath.Hash, err)
	} else if err != nil {
		return fmt.Errorf("insert %s: %w", n.StorePath.Hash, err)
	}
	if err := tx.conn.exec(insertNarinfo+" VALUES (?, ?, ?, ?, ?, ?)", appendNarinfoRow(nil, id, entry, referencesColumn(n))...); err != nil {
		return err
	}
	tx.change.Items++
	tx.refer(id, n)
	return tx.logAddition(entry)
}

// What a new item is written with, and the values of a row.
const (
	insertItem    = "INSERT INTO items (id, key, added_at, stored_files, stored_size, file_sizes, mirrored)"
	insertNarinfo = "INSERT INTO narinfos (id, hash, refs, dictionary, text, checksum)"
)

// appendItemRow appends the row of an item; a nil id is for the next one.
func appendItemRow(row []driver.Value, id driver.Value, entry *Entry, storedSize int64) []driver.Value {
	return append(row, id, keyOf(entry.Narinfo.StorePath.Hash), entry.AddedAt.Truncate(time.Second).UnixMilli(),
		int64(entry.Stored), storedSize, sizesColumn(entry.Sizes), boolValue(entry.Mirrored))
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

// isDuplicate says that a row was refused for a value that another row has.
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

// SetMirrored records whether the instance that this one mirrors has the item.
func (tx *Tx) SetMirrored(hash narinfo.PathHash, mirrored bool) error {
	return tx.conn.exec("UPDATE items SET mirrored = ? WHERE key = ?", boolValue(mirrored), keyOf(hash))
}

// truth is a boolean as SQLite has it.
func boolValue(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// SetStored records which files of a known item are in the storage.
func (tx *Tx) SetStored(hash narinfo.PathHash, stored uint64, sizes []int64) error {
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
	err = tx.conn.exec("UPDATE items SET stored_files = ?, stored_size = ?, file_sizes = ? WHERE id = ?",
		int64(stored), size, sizesColumn(sizes), item.id)
	if err != nil {
		return err
	}
	return tx.log(StorageChanged, time.Now(), hash, nil)
}

// Remove deletes the item with its tags and uses, and notes the removal in the
// recent changes, unless that was done when it was withdrawn.
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
	// The tags and uses go with the item, as their foreign keys say.
	err = errors.Join(
		tx.conn.exec("DELETE FROM items WHERE id = ?", item.id),
		tx.conn.exec("DELETE FROM narinfos WHERE id = ?", item.id))
	if err != nil {
		return err
	}
	tx.change.Items--
	if !item.WithdrawnAt.IsZero() {
		return tx.log(StorageChanged, at, hash, nil)
	}
	return tx.log(Removed, at, hash, n.StorePath.String())
}

// AddTags gives tags to a known item; those it has already are no error.
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

// RemoveTag takes a tag from a known item, and reports whether it had it.
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

// Missing returns those of the paths that have no narinfo in the index.
func (tx *Tx) Missing(paths []narinfo.StorePath) ([]narinfo.StorePath, error) {
	return tx.conn.missing(paths)
}

// count adds files of an item to the change of the totals, or takes them off.
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

// PutChange appends a change to the log as it is, but for its ID, which is the
// next. It is for changes that were made elsewhere.
func (tx *Tx) PutChange(change Change) error {
	var storePath driver.Value
	if change.StorePath != "" {
		storePath = change.StorePath
	}
	return tx.log(change.Kind, change.At, change.Hash, storePath)
}

// log notes a change for those who follow. storePath is nil or a string.
func (tx *Tx) log(kind ChangeKind, at time.Time, hash narinfo.PathHash, storePath driver.Value) error {
	return tx.conn.exec("INSERT INTO recent_changes (at, kind, hash, store_path) VALUES (?, ?, ?, ?)",
		at.UnixMilli(), int64(kind), hash[:], storePath)
}

// parsed returns the item's narinfo, and the bytes that its stored files take.
func (i *Item) parsed() (*narinfo.Narinfo, int64, error) {
	n, err := narinfo.Parse(i.Text)
	if err != nil {
		return nil, 0, fmt.Errorf("the narinfo of %s in the database: %w", i.Hash, err)
	}
	size, err := storedSize(n, i.Stored, i.Sizes)
	return n, size, err
}

// FileSize is the length in bytes of the narinfo's Nth file: what the narinfo
// says, or else what was found, as in [Item]; -1 when neither is known.
func FileSize(n *narinfo.Narinfo, file int, sizes []int64) int64 {
	if size := n.Files[file].Size; size >= 0 {
		return size
	}
	if file < len(sizes) {
		return sizes[file]
	}
	return -1
}

// storedSize is the length in bytes of the stored ones of the narinfo's files.
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
