package index

import (
	"cmp"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"nar-herder/narinfo"
)

// Entry is an item to be written, made ready outside of any transaction by
// [Index.Prepare].
type Entry struct {
	Narinfo *narinfo.Narinfo
	// AddedAt, Stored and Sizes are as in [Item]. AddedAt counts for an item
	// that is new to the index; others keep theirs.
	AddedAt time.Time
	Stored  uint64
	Sizes   []int64

	dictionary int64
	compressed []byte
}

// Prepare does the part of writing an item that needs no database, so that it
// can be done beside a transaction.
func (x *Index) Prepare(n *narinfo.Narinfo) *Entry {
	entry := &Entry{Narinfo: n}
	entry.dictionary, entry.compressed = x.codec.compress(n.Text)
	return entry
}

// Update runs f in a transaction of its own, which is committed, and safe on
// the disk, when Update returns nil, and leaves no trace when f or the commit
// fails. Other writers wait meanwhile, also those of other processes, so f is
// to take well under a second.
func (x *Index) Update(ctx context.Context, f func(*Tx) error) (err error) {
	x.writing.Lock()
	defer x.writing.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := x.writer.exec("BEGIN IMMEDIATE"); err != nil {
		return describe("lock "+x.path+" for writing", err)
	}
	tx := &Tx{
		x: x, conn: x.writer,
		fresh:     make(map[narinfo.PathHash]int64),
		referrers: make(map[referrerBlock][]byte),
	}
	defer func() {
		if err != nil {
			// SQLite may have rolled back by itself, as it does when the disk
			// is full; then this fails, and err says why.
			_ = x.writer.exec("ROLLBACK")
		}
	}()
	if err := f(tx); err != nil {
		return describe("write to "+x.path, err)
	}
	if err := errors.Join(tx.flushReferrers(), tx.flushTotals()); err != nil {
		return describe("write to "+x.path, err)
	}
	if err := x.writer.exec("COMMIT"); err != nil {
		return describe("commit to "+x.path, err)
	}
	for hash, id := range tx.fresh {
		x.known.Add(hash, id)
	}
	return nil
}

// Tx is a transaction, good until the function given to [Index.Update] returns.
type Tx struct {
	x    *Index
	conn *connection
	// fresh holds ids of paths that are in no other transaction yet.
	fresh map[narinfo.PathHash]int64
	// referrers gathers additions to the table of that name, so that a path
	// that a batch refers to often is written once.
	referrers map[referrerBlock][]byte
	change    Totals
}

type referrerBlock struct{ path, block int64 }

// Item returns the item's row as this transaction sees it, or [ErrNotFound].
func (tx *Tx) Item(hash narinfo.PathHash) (*Item, error) {
	row, err := tx.conn.first(itemByHash, hash[:])
	if err != nil {
		return nil, err
	}
	if row == nil {
		return nil, ErrNotFound
	}
	return tx.x.item(row)
}

// Put writes a new item, or the new text and state of a known one, and notes
// the addition in the recent changes. old is what [Tx.Item] gave for it in this
// transaction, nil when that was ErrNotFound.
func (tx *Tx) Put(entry *Entry, old *Item) error {
	n := entry.Narinfo
	id, err := tx.intern(n.StorePath.Hash, true)
	if err != nil {
		return err
	}
	references := make([]int64, len(n.References))
	for i, reference := range n.References {
		if references[i], err = tx.intern(reference.Hash, false); err != nil {
			return err
		}
	}
	size, err := storedSize(n, entry.Stored, entry.Sizes)
	if err != nil {
		return err
	}
	at := entry.AddedAt
	if old != nil {
		at = old.AddedAt
		if err := tx.forget(old); err != nil {
			return err
		}
		err = tx.conn.exec("UPDATE items SET stored_files = ?, stored_size = ?, file_sizes = ? WHERE id = ?",
			int64(entry.Stored), size, sizesColumn(entry.Sizes), id)
	} else {
		err = tx.conn.exec("INSERT INTO items VALUES (?, ?, ?, ?, ?)",
			id, at.UnixMilli(), int64(entry.Stored), size, sizesColumn(entry.Sizes))
		tx.change.Items++
	}
	if err != nil {
		return err
	}
	tx.count(entry.Stored, size, 1)
	err = tx.conn.exec(`INSERT INTO narinfos VALUES (?, ?, ?, ?)
		ON CONFLICT DO UPDATE SET refs = excluded.refs, dictionary = excluded.dictionary, text = excluded.text`,
		id, encodeInts(references), entry.dictionary, entry.compressed)
	if err != nil {
		return err
	}
	tx.refer(id, references)
	return tx.log(Added, at, id, nil)
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
		int64(stored), size, sizesColumn(sizes), item.ID)
	if err != nil {
		return err
	}
	return tx.log(StorageChanged, time.Now(), item.ID, nil)
}

// Remove deletes the item with its tags and uses, and notes the removal in the
// recent changes.
func (tx *Tx) Remove(hash narinfo.PathHash, at time.Time) error {
	item, err := tx.Item(hash)
	if err != nil {
		return err
	}
	n, _, err := item.parsed()
	if err != nil {
		return err
	}
	if err := tx.forget(item); err != nil {
		return err
	}
	// The rows of other tables go with this one, as their foreign keys say.
	if err := tx.conn.exec("DELETE FROM items WHERE id = ?", item.ID); err != nil {
		return err
	}
	tx.change.Items--
	return tx.log(Removed, at, item.ID, n.StorePath.String())
}

// AddTags gives tags to a known item; those it has already are no error.
func (tx *Tx) AddTags(hash narinfo.PathHash, tags []Tag) error {
	if len(tags) == 0 {
		return nil
	}
	item, err := tx.intern(hash, false)
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

// Missing returns those of the paths that have no narinfo in the index.
func (tx *Tx) Missing(paths []narinfo.StorePath) (missing []narinfo.StorePath, err error) {
	for _, path := range paths {
		n, err := tx.conn.integer("SELECT count(*) FROM paths p JOIN items i ON i.id = p.id WHERE p.hash = ?", path.Hash[:])
		if err != nil {
			return nil, err
		}
		if n == 0 {
			missing = append(missing, path)
		}
	}
	return missing, nil
}

// forget takes what an item's present row says out of the referrers and the
// totals.
func (tx *Tx) forget(item *Item) error {
	_, size, err := item.parsed()
	if err != nil {
		return err
	}
	tx.count(item.Stored, size, -1)
	if err := tx.flushReferrers(); err != nil {
		return err
	}
	row, err := tx.conn.first("SELECT refs FROM narinfos WHERE id = ?", item.ID)
	if err != nil || row == nil {
		return err
	}
	block, offset := item.ID/blockSize, uint16(item.ID%blockSize)
	for _, path := range distinct(decodeInts(blob(row[0]))) {
		row, err := tx.conn.first("SELECT offsets FROM referrers WHERE path = ? AND block = ?", path, block)
		if err != nil {
			return err
		}
		if row == nil {
			continue
		}
		var kept []byte
		for offsets := blob(row[0]); len(offsets) >= 2; offsets = offsets[2:] {
			if binary.LittleEndian.Uint16(offsets) != offset {
				kept = append(kept, offsets[:2]...)
			}
		}
		if len(kept) == 0 {
			err = tx.conn.exec("DELETE FROM referrers WHERE path = ? AND block = ?", path, block)
		} else {
			err = tx.conn.exec("UPDATE referrers SET offsets = ? WHERE path = ? AND block = ?", kept, path, block)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// refer notes that the item refers to the paths.
func (tx *Tx) refer(item int64, paths []int64) {
	for _, path := range distinct(paths) {
		key := referrerBlock{path, item / blockSize}
		tx.referrers[key] = binary.LittleEndian.AppendUint16(tx.referrers[key], uint16(item%blockSize))
	}
}

// flushReferrers writes the gathered referrers, in the order of the table.
func (tx *Tx) flushReferrers() error {
	keys := make([]referrerBlock, 0, len(tx.referrers))
	for key := range tx.referrers {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, func(a, b referrerBlock) int {
		return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.block, b.block))
	})
	for _, key := range keys {
		// || makes text of blobs, hence the cast, which leaves the bytes alone.
		err := tx.conn.exec(`INSERT INTO referrers VALUES (?, ?, ?)
			ON CONFLICT DO UPDATE SET offsets = CAST(offsets || excluded.offsets AS BLOB)`,
			key.path, key.block, tx.referrers[key])
		if err != nil {
			return err
		}
	}
	clear(tx.referrers)
	return nil
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

// intern returns the id of the path, and makes one where it has none. likelyNew
// says which of the two ways to try first.
func (tx *Tx) intern(hash narinfo.PathHash, likelyNew bool) (id int64, err error) {
	if id, ok := tx.fresh[hash]; ok {
		return id, nil
	}
	if id, ok := tx.x.known.Get(hash); ok {
		return id, nil
	}
	if !likelyNew {
		row, err := tx.conn.first("SELECT id FROM paths WHERE hash = ?", hash[:])
		if err != nil {
			return 0, err
		}
		if row != nil {
			id := row[0].(int64)
			tx.x.known.Add(hash, id)
			return id, nil
		}
	}
	row, err := tx.conn.first("INSERT INTO paths (hash) VALUES (?) ON CONFLICT DO NOTHING RETURNING id", hash[:])
	if err != nil {
		return 0, err
	}
	if row == nil {
		return tx.intern(hash, false)
	}
	id = row[0].(int64)
	tx.fresh[hash] = id
	return id, nil
}

// log notes a change for those who follow.
func (tx *Tx) log(kind ChangeKind, at time.Time, path int64, storePath driver.Value) error {
	return tx.conn.exec("INSERT INTO recent_changes (at, kind, path, store_path) VALUES (?, ?, ?, ?)",
		at.UnixMilli(), int64(kind), path, storePath)
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

// storedSize is the length in bytes of the stored ones of the narinfo's files.
func storedSize(n *narinfo.Narinfo, stored uint64, sizes []int64) (total int64, err error) {
	for i, file := range n.Files {
		if i >= 64 || stored&(1<<i) == 0 {
			continue
		}
		size := file.Size
		if size < 0 && i < len(sizes) {
			size = sizes[i]
		}
		if size < 0 {
			return 0, fmt.Errorf("%s: file %s is recorded as stored, but its size is not known", n.StorePath, file.URL)
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

// distinct returns the numbers sorted, each once.
func distinct(numbers []int64) []int64 {
	sorted := slices.Clone(numbers)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}
