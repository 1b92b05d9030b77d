package index

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/disk"
	"nar-herder/narinfo"
)

// Builder creates a new index of very many items, several times as fast as [Index.Update]:
// no other process knows the file, so it needs no journal and no flushes before the end,
// and writes data that is not in insertion order last.
type Builder struct {
	path  string
	conn  *connection
	tx    *Tx
	edges *edgeSorter
	wrote func() // stops writing out pages

	last            int64          // id assigned
	items, narinfos []driver.Value // rows of the next statements
	waiting         int            // total length of their texts in bytes
}

// buildCache is the page cache of a Builder in bytes. Tables only grow at their ends, so it
// can be small.
const buildCache = 16 << 20

// rowsTogether is how many rows one statement writes, unless their texts exceed
// bytesTogether. The overhead of a statement equals the cost of its rows.
const (
	rowsTogether  = 32
	bytesTogether = 4 << 20
)

// Build starts a new index. It removes an unfinished index at path.
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
	b.conn, err = connect(ctx, fileName(absolute)+"?_pragma=page_size("+strconv.Itoa(pageSize)+")&_pragma=cache_size(-"+strconv.Itoa(buildCache/1024)+")"+
		"&_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=locking_mode(exclusive)&_pragma=temp_store(memory)&_pragma=foreign_keys(off)")
	if err != nil {
		return nil, err
	}
	for _, step := range migrations {
		if err := b.conn.script(step); err != nil {
			return nil, err
		}
	}
	if err := b.conn.script("DROP INDEX items_by_key; BEGIN EXCLUSIVE"); err != nil {
		return nil, err
	}
	x := &Index{path: path}
	b.tx = &Tx{x: x, conn: b.conn}
	if x.codec, err = openCodec(b.conn, true); err != nil {
		return nil, err
	}
	b.edges, err = newEdgeSorter(filepath.Dir(absolute))
	return b, err
}

// removeBuilt removes an unfinished database.
func removeBuilt(path string) (failure error) {
	for _, suffix := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			failure = errors.Join(failure, err)
		}
	}
	return failure
}

// Row is an item as a Builder writes it. It doesn't refer to the narinfo's memory, so the
// text may be overwritten.
type Row struct {
	item    [itemWidth]driver.Value    // begins with the id
	narinfo [narinfoWidth]driver.Value // begins with the id
	// references is the column of narinfos, and bytes the length of the text.
	references []byte
	bytes      int
}

// Prepare is [Index.Prepare]. It is safe for concurrent use.
func (b *Builder) Prepare(n *narinfo.Narinfo) *Entry { return b.tx.x.Prepare(n) }

// PrepareForeign is Prepare for the text of a row of a foreign file. If the file has it in
// the same compressed form, it is not compressed again.
func (b *Builder) PrepareForeign(n *narinfo.Narinfo, f *Foreign, row ForeignRow) *Entry {
	if f.onlyBuiltin && row.dictionary == builtinID && len(row.stored) < len(n.Text) {
		return &Entry{Narinfo: n, checksum: checksumOf(n.StorePath.Hash, n.Text), dictionary: builtinID, compressed: row.stored}
	}
	return b.Prepare(n)
}

// Row returns the row of an entry, as of a mirrored item without stored files. It is safe
// for concurrent use.
func (b *Builder) Row(entry *Entry) Row {
	if entry.dictionary == uncompressed {
		entry.compressed = bytes.Clone(entry.compressed)
	}
	r := Row{references: referencesColumn(entry.Narinfo), bytes: len(entry.compressed)}
	r.item = [itemWidth]driver.Value{nil, keyOf(entry.Narinfo.StorePath.Hash), entry.AddedAt.Truncate(time.Second).UnixMilli()}
	appendNarinfoRow(r.narinfo[:0], 0, entry, r.references)
	return r
}

// Add appends an item, without adding it to the recent changes. If several items have the
// same hash, the last one wins.
func (b *Builder) Add(row *Row) error {
	b.tx.change.Items++
	b.last++
	var id driver.Value = b.last
	row.item[0], row.narinfo[0] = id, id
	b.items = append(b.items, row.item[:]...)
	b.narinfos = append(b.narinfos, row.narinfo[:]...)
	for packed := row.references; len(packed) >= 8; packed = packed[8:] {
		if err := b.edges.add(edge{int64(binary.BigEndian.Uint64(packed)), b.last}); err != nil {
			return err
		}
	}
	b.waiting += row.bytes
	if len(b.items)/itemWidth == rowsTogether || b.waiting >= bytesTogether {
		return b.flush()
	}
	return nil
}

// Widths of a waiting row, and the constant columns of an item.
const (
	itemWidth, narinfoWidth = 3, 6
	sameColumns             = ", 0, 0, NULL, 1, 0"
)

// flush writes the waiting rows.
func (b *Builder) flush() error {
	count := len(b.items) / itemWidth
	if count == 0 {
		return nil
	}
	values := func(width int, same string) string {
		row := ", (?" + strings.Repeat(", ?", width-1) + same + ")"
		return " VALUES " + strings.Repeat(row, count)[2:]
	}
	err := errors.Join(b.conn.exec(insertItem+values(itemWidth, sameColumns), b.items...), b.conn.exec(insertNarinfo+values(narinfoWidth, ""), b.narinfos...))
	clear(b.items) // let the garbage collector free the texts
	clear(b.narinfos)
	b.items, b.narinfos, b.waiting = b.items[:0], b.narinfos[:0], 0
	if err != nil {
		return describe("build the index "+b.path, err)
	}
	return nil
}

// Finish writes the remaining data and the settings, flushes the file but not its
// directory, and closes the Builder. It returns the number of items.
func (b *Builder) Finish(ctx context.Context, settings map[string]string) (items int64, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(describe("finish the index "+b.path, err), b.Abort())
		}
	}()
	if err := b.flush(); err != nil {
		return 0, err
	}
	// Sort the edges while SQLite builds its index.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	sorted := b.edges.all(ctx)
	for name, value := range settings {
		if err := b.tx.SetSetting(name, value); err != nil {
			return 0, err
		}
	}
	if err := errors.Join(b.tx.flushTotals(), b.conn.exec("COMMIT")); err != nil {
		return 0, err
	}
	if err := b.indexKeys(ctx); err != nil {
		return 0, err
	}
	if err := b.conn.script("BEGIN EXCLUSIVE"); err != nil {
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
	err = b.conn.script(fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d; COMMIT", ApplicationID, len(migrations)))
	if err != nil {
		return 0, err
	}
	if items, err = b.conn.integer("SELECT items FROM totals"); err != nil {
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

// indexKeys creates the index of keys, after deleting earlier items with the same hash.
func (b *Builder) indexKeys(ctx context.Context) error {
	// Without a journal, SQLite can't undo a failed statement.
	if err := b.conn.script("PRAGMA journal_mode = memory"); err != nil {
		return err
	}
	err := b.conn.execContext(ctx, keyIndex)
	var failure *sqlite.Error
	if errors.As(err, &failure) && failure.Code()&0xff == sqlite3.SQLITE_CONSTRAINT {
		err = b.conn.execContext(ctx, `CREATE TEMP TABLE repeated AS SELECT id FROM (SELECT id, max(id) OVER (PARTITION BY key) AS newest FROM items) WHERE id < newest;
			DELETE FROM items WHERE id IN (SELECT id FROM repeated);
			DELETE FROM narinfos WHERE id IN (SELECT id FROM repeated);
			UPDATE totals SET items = (SELECT count(*) FROM items);
			DROP TABLE repeated;
			`+keyIndex)
	}
	if err != nil {
		return err
	}
	return b.conn.script("PRAGMA journal_mode = off")
}

// Abort closes an unfinished Builder and removes the file.
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
	if b.edges != nil {
		err = b.edges.close()
		b.edges = nil
	}
	if b.conn != nil {
		err = errors.Join(err, b.conn.close())
		b.conn = nil
	}
	return err
}
