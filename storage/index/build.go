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

// Builder makes a new index of very many items, several times as fast as transactions
// of [Index.Update] would: nobody else knows the file, so that there is neither a
// journal nor a wait for the disk before the end, and what isn't written in the order of
// arrival is written when all items are there.
type Builder struct {
	path  string
	conn  *connection
	tx    *Tx
	edges *edgeSorter
	wrote func() // ends the writing out

	last            int64          // id that was given
	items, narinfos []driver.Value // rows that are written together
	waiting         int            // bytes of texts in them
}

// buildCache is the page cache of a Builder, in bytes: tables only grow at their ends.
const buildCache = 16 << 20

// rowsTogether is how many rows one statement writes, unless their texts come to
// bytesTogether. What a statement costs beside its rows is as much as the rows themselves.
const (
	rowsTogether  = 32
	bytesTogether = 4 << 20
)

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
	item    [itemWidth]driver.Value    // the first one is the id
	narinfo [narinfoWidth]driver.Value // also here
	// references is the column of narinfos, and bytes the length of the text's.
	references []byte
	bytes      int
}

// Prepare is [Index.Prepare]. It may be called by several goroutines at once.
func (b *Builder) Prepare(n *narinfo.Narinfo) *Entry { return b.tx.x.Prepare(n) }

// PrepareForeign is Prepare for a narinfo that is the text of a row of a foreign file: where
// it is compressed there as it would be here, it isn't compressed again.
func (b *Builder) PrepareForeign(n *narinfo.Narinfo, f *Foreign, row ForeignRow) *Entry {
	if f.onlyBuiltin && row.dictionary == builtinID && len(row.stored) < len(n.Text) {
		return &Entry{Narinfo: n, checksum: checksumOf(n.StorePath.Hash, n.Text), dictionary: builtinID, compressed: row.stored}
	}
	return b.Prepare(n)
}

// Row makes the row of an entry, as of an item that the mirrored instance has, and none of
// whose files is stored. It may be called by several goroutines at once.
func (b *Builder) Row(entry *Entry) Row {
	if entry.dictionary == uncompressed {
		entry.compressed = bytes.Clone(entry.compressed)
	}
	r := Row{references: referencesColumn(entry.Narinfo), bytes: len(entry.compressed)}
	r.item = [itemWidth]driver.Value{nil, keyOf(entry.Narinfo.StorePath.Hash), entry.AddedAt.Truncate(time.Second).UnixMilli()}
	appendNarinfoRow(r.narinfo[:0], 0, entry, r.references)
	return r
}

// Add writes an item after the earlier ones, without an addition in the recent changes. If
// items have the same hash, the last one counts.
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

// How many values a row has that waits, and the columns of an item that are all the same.
const (
	itemWidth, narinfoWidth = 3, 6
	sameColumns             = ", 0, 0, NULL, 1"
)

// flush writes the rows that wait.
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
	clear(b.items) // they are not to be kept
	clear(b.narinfos)
	b.items, b.narinfos, b.waiting = b.items[:0], b.narinfos[:0], 0
	if err != nil {
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
	if err := b.flush(); err != nil {
		return 0, err
	}
	// The edges are sorted beside the making of the index.
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

// indexKeys makes the index by keys, without those items that came again.
func (b *Builder) indexKeys(ctx context.Context) error {
	// Without a journal, a statement that fails could not be undone.
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
