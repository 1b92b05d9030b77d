package index

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/narinfo"
)

// Builder makes a new index of very many items, several times as fast as transactions
// of [Index.Update] would: nobody else knows the file, so that there is neither a
// journal nor a wait for the disk before the end, and what isn't written in the order of
// arrival is written when all items are there.
type Builder struct {
	path  string
	conn  *connection
	tx    *Tx
	wrote func() // ends the writing out

	last                  int64     // id that was given
	pages                 *pageFile // nil when they are written
	items, narinfos, keys *treeWriter
	// edges sorts the references, and order the keys, with the ids of their items.
	edges, order *edgeSorter
}

// buildCache is the page cache of a Builder's connection, in bytes.
const buildCache = 16 << 20

// Build begins a new index. What was at the path is removed: an index that an earlier
// Builder has not finished.
func Build(ctx context.Context, path string) (_ *Builder, err error) {
	tried := "build the index " + path
	absolute, err := filepath.Abs(path)
	if err == nil {
		err = removeBuilt(absolute)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tried, err)
	}
	if err := prepareFile(absolute, Create); err != nil {
		return nil, err
	}
	b := &Builder{path: absolute, wrote: disk.WriteOut(absolute)}
	defer func() {
		if err != nil {
			err = errors.Join(describe(tried, err), b.Abort())
		}
	}()
	b.tx = &Tx{x: &Index{path: path}}
	if err := b.connect(ctx); err != nil {
		return nil, err
	}
	for _, step := range migrations {
		if err := b.conn.script(step); err != nil {
			return nil, err
		}
	}
	if b.tx.x.codec, err = openCodec(b.conn, true); err != nil {
		return nil, err
	}
	root := func(name string) int64 {
		number, rootErr := b.conn.integer("SELECT rootpage FROM sqlite_schema WHERE name = ?", name)
		err = errors.Join(err, rootErr)
		return number
	}
	items, narinfos, keys := root("items"), root("narinfos"), root("items_by_key")
	if err = errors.Join(err, b.conn.close()); err != nil {
		return nil, err
	}
	b.conn = nil
	if b.pages, err = openPages(absolute); err != nil {
		return nil, err
	}
	b.items, b.narinfos, b.keys = newTreeWriter(b.pages, items, false), newTreeWriter(b.pages, narinfos, false), newTreeWriter(b.pages, keys, true)
	if b.edges, err = newEdgeSorter(filepath.Dir(absolute)); err == nil {
		b.order, err = newEdgeSorter(filepath.Dir(absolute))
	}
	return b, err
}

// connect opens the file with SQLite.
func (b *Builder) connect(ctx context.Context) (err error) {
	b.conn, err = connect(ctx, fileName(b.path)+"?_pragma=page_size("+strconv.Itoa(pageSize)+")&_pragma=cache_size(-"+strconv.Itoa(buildCache/1024)+")"+
		"&_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=locking_mode(exclusive)&_pragma=temp_store(memory)&_pragma=foreign_keys(off)")
	b.tx.conn = b.conn
	return err
}

// removeBuilt removes a database that is of no use.
func removeBuilt(path string) (failure error) {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failure = errors.Join(failure, err)
		}
	}
	return failure
}

// Row is an item in the form in which a Builder writes it. It uses no memory of the
// narinfo, whose text may be overwritten.
type Row struct {
	key           int64
	item, narinfo []byte // the records
	references    []byte // the column refs
}

// Prepare is [Index.Prepare]. It may be called by several goroutines at once.
func (b *Builder) Prepare(n *narinfo.Narinfo) *Entry { return b.tx.x.Prepare(n) }

// PrepareForeign is Prepare for a narinfo that is the text of a row of a foreign file: where
// it is compressed there as it would be here, it isn't compressed again.
func (b *Builder) PrepareForeign(n *narinfo.Narinfo, f *Foreign, row ForeignRow) *Entry {
	if f.own && row.dictionary == builtinID && len(row.stored) < len(n.Text) {
		return &Entry{Narinfo: n, checksum: checksumOf(n.StorePath.Hash, n.Text), dictionary: builtinID, compressed: row.stored}
	}
	return b.Prepare(n)
}

// Row makes the row of an entry, as of an item that the mirrored instance has, and none of
// whose files is stored. It may be called by several goroutines at once.
func (b *Builder) Row(entry *Entry) Row {
	n := entry.Narinfo
	key := keyOf(n.StorePath.Hash)
	// The columns as the tables have them.
	const columns = 100 // more than all but refs and text have
	record := make([]byte, 0, columns+8*len(n.References)+len(entry.compressed))
	record = appendRecord(record, nil, key, entry.AddedAt.Truncate(time.Second).UnixMilli(), int64(0), int64(0), nil, int64(1))
	size := len(record)
	references := referencesColumn(n)
	record = appendRecord(record, nil, n.StorePath.Hash[:], references, entry.dictionary, entry.compressed, nil, entry.checksum, nil)
	return Row{key, record[:size], record[size:], references}
}

// Add writes an item after the earlier ones, without an addition in the recent changes. If
// items have the same hash, the last one counts.
func (b *Builder) Add(row *Row) error {
	b.last++
	for packed := row.references; len(packed) >= 8; packed = packed[8:] {
		if err := b.edges.add(edge{int64(binary.BigEndian.Uint64(packed)), b.last}); err != nil {
			return err
		}
	}
	if err := errors.Join(b.order.add(edge{row.key, b.last}), b.items.addRow(b.last, row.item), b.narinfos.addRow(b.last, row.narinfo)); err != nil {
		return describe("build the index "+b.path, err)
	}
	return nil
}

// Finish writes the rest and the settings, and makes the file safe on the disk, but not
// its name. It ends the Builder. It returns how many items there are.
func (b *Builder) Finish(ctx context.Context, settings map[string]string) (items int64, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(describe("finish the index "+b.path, err), b.Abort())
		}
	}()
	// The edges are sorted beside the making of the index.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	sorted := b.edges.all(ctx)
	repeated, err := b.writeKeys(ctx)
	err = errors.Join(err, b.items.finish(), b.narinfos.finish(), b.keys.finish(), b.pages.finish())
	b.pages = nil
	if err == nil {
		err = b.connect(ctx)
	}
	if err != nil {
		return 0, err
	}
	if err := b.conn.script("BEGIN EXCLUSIVE"); err != nil {
		return 0, err
	}
	for name, value := range settings {
		if err := b.tx.SetSetting(name, value); err != nil {
			return 0, err
		}
	}
	if err := b.drop(ctx, repeated); err != nil {
		return 0, err
	}
	items = b.last - int64(len(repeated))
	b.tx.change.Items = items
	if err := errors.Join(b.tx.flushTotals(), b.conn.exec("INSERT INTO sqlite_sequence VALUES ('items', ?)", b.last)); err != nil {
		return 0, err
	}
	w := newRun(b.conn)
	for part := range sorted {
		if part.err != nil {
			return 0, part.err
		}
		for _, e := range part.edges {
			if err := w.add(e); err != nil {
				return 0, err
			}
		}
	}
	if err := errors.Join(ctx.Err(), w.end()); err != nil {
		return 0, err
	}
	err = b.conn.script(fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT", applicationID, len(migrations)))
	if err != nil {
		return 0, err
	}
	err = b.close()
	b.wrote()
	b.wrote = func() {}
	if err != nil {
		return 0, err
	}
	file, err := os.Open(b.path)
	if err != nil {
		return 0, err
	}
	return items, errors.Join(file.Sync(), file.Close())
}

// writeKeys writes the index by keys, and returns the ids of the items that came again later.
func (b *Builder) writeKeys(ctx context.Context) (repeated []int64, err error) {
	var last edge
	var record []byte
	write := func(e edge) bool {
		if e.target == last.target && last.referrer > 0 {
			repeated = append(repeated, last.referrer)
		}
		last = e
		record = appendRecord(record[:0], e.target, e.referrer)
		err = errors.Join(ctx.Err(), b.keys.addEntry(record))
		return err == nil
	}
	if _, err := b.order.wait(); err != nil {
		return nil, err
	}
	mergeErr := b.order.merge(sortEdges(b.order.edges), write)
	return repeated, errors.Join(mergeErr, err)
}

// drop deletes items that came again later, after which the index by keys is made anew.
func (b *Builder) drop(ctx context.Context, repeated []int64) error {
	if len(repeated) == 0 {
		return nil
	}
	if err := b.conn.script("DROP INDEX items_by_key"); err != nil {
		return err
	}
	for _, id := range repeated {
		if err := errors.Join(ctx.Err(), b.conn.exec("DELETE FROM items WHERE id = ?", id), b.conn.exec("DELETE FROM narinfos WHERE id = ?", id)); err != nil {
			return err
		}
	}
	return b.conn.long(ctx, keyIndex)
}

// Abort ends a Builder that was not finished, and removes the file.
func (b *Builder) Abort() error {
	b.wrote()
	b.wrote = func() {}
	return errors.Join(b.close(), removeBuilt(b.path))
}

func (b *Builder) close() (err error) {
	if b.tx != nil && b.tx.x.codec != nil {
		b.tx.x.codec.close()
		b.tx.x.codec = nil
	}
	for _, sorter := range []**edgeSorter{&b.edges, &b.order} {
		if *sorter != nil {
			err = errors.Join(err, (*sorter).close())
			*sorter = nil
		}
	}
	if b.pages != nil {
		err = errors.Join(err, b.pages.file.Close())
		b.pages = nil
	}
	if b.conn != nil {
		err = errors.Join(err, b.conn.close())
		b.conn = nil
	}
	return err
}
