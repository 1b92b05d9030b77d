package original

import (
	"cmp"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	lru "github.com/hashicorp/golang-lru/v2"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/disk"
	"nar-herder/narinfo"
)

const (
	// writerPage is the page size in bytes. A narinfo takes a few kilobytes, so smaller
	// pages would waste more space.
	writerPage = 8 << 10
	// writerCache is the size of SQLite's page cache in bytes. It also bounds the memory
	// for sorting the hashes.
	writerCache = 16 << 20
	// rowsAtOnce is how many rows one statement inserts into the small tables.
	rowsAtOnce = 32
	// knownTags bounds the cache of the ids of tags. Usually there are few different tags.
	knownTags = 10_000
)

// Writer writes a database with the original's schema. It is used by one goroutine. After an
// error of any method, call Abort, unless the method says otherwise.
type Writer struct {
	path  string // as it was given
	conn  *connection
	ended bool

	id, cachedID, changeID int64 // the last ones given
	references             rows
	files                  rows
	tags                   rows
	tagIDs                 *lru.Cache[Tag, int64]
}

// Create begins a database in a new file. The error is [fs.ErrExist] if the file exists. The
// content is invalid before Finish, also after a crash: write to a temporary name and rename
// the file.
func Create(ctx context.Context, path string) (*Writer, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("database %s: find its absolute path: %w", path, err)
	}
	file, err := disk.OpenFile(absolute, os.O_RDWR|os.O_EXCL, 0o664, disk.GroupWrites)
	if err != nil {
		return nil, fmt.Errorf("create database %s: %w", path, cmp.Or(errors.Unwrap(err), err))
	}
	w := &Writer{
		path:       path,
		references: rows{table: "narinfo_references (narinfo_id, store_path)", width: 2},
		files:      rows{table: "narinfo_files (narinfo_id, size, compression, url)", width: 4},
		tags:       rows{table: "narinfo_tags (narinfo_id, tag_id)", width: 2},
	}
	if w.tagIDs, err = lru.New[Tag, int64](knownTags); err == nil {
		err = file.Close() // before SQLite opens it: this drops all locks on the file
	}
	if err == nil {
		// The file is removed after any error, so a journal and syncing are useless before
		// the end.
		w.conn, err = connect(ctx, absolute, "mode=rw",
			fmt.Sprintf("_pragma=page_size(%d)", writerPage),
			"_pragma=journal_mode(off)", "_pragma=synchronous(off)", "_pragma=locking_mode(exclusive)",
			fmt.Sprintf("_pragma=cache_size(-%d)", writerCache>>10),
			"_pragma=foreign_keys(off)", "_pragma=temp_store(file)")
	}
	if err == nil {
		err = w.conn.script(ctx, "BEGIN EXCLUSIVE;"+tables)
	}
	if err != nil {
		return nil, errors.Join(w.describe("create it", err), w.Abort())
	}
	return w, nil
}

// Add writes an item. It parses the narinfo for the other columns. After a
// [*narinfo.SyntaxError] or [narinfo.ErrTooLarge], nothing of this item was written, and other
// items may follow. Of items with the same hash, the last one counts.
func (w *Writer) Add(item Item) error {
	n, err := narinfo.Parse(item.Text)
	if err != nil {
		return err
	}
	w.id++
	err = w.conn.exec("INSERT INTO narinfos (id, store_path, nar_hash, nar_size, deriver, system, contents, added_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
		w.id, n.StorePath.String(), n.NarHash.String(), max(n.NarSize, 0), textOrNull(n.Deriver), textOrNull(n.System), string(item.Text), timeOrNull(item))
	if err != nil {
		return w.describe("write "+n.StorePath.BaseName(), err)
	}
	for _, reference := range n.References {
		err = errors.Join(err, w.references.add(w.conn, w.id, reference.String()))
	}
	for _, file := range n.Files {
		err = errors.Join(err, w.files.add(w.conn, w.id, sizeOrNull(file.Size), file.Compression, urlPath(file.URL)))
	}
	for _, tag := range item.Tags {
		id, tagErr := w.tagID(tag)
		err = errors.Join(err, tagErr)
		if tagErr == nil {
			err = errors.Join(err, w.tags.add(w.conn, w.id, id))
		}
	}
	for _, cached := range item.Cached {
		w.cachedID++
		err = errors.Join(err, w.conn.exec("INSERT INTO cached_narinfo_files (id, narinfo_id, size, compression) VALUES (?, ?, ?, ?)",
			w.cachedID, w.id, sizeOrNull(cached.Size), cached.Compression))
	}
	if err != nil {
		return w.describe("write the details of "+n.StorePath.BaseName(), err)
	}
	return nil
}

func (w *Writer) tagID(tag Tag) (int64, error) {
	if id, ok := w.tagIDs.Get(tag); ok {
		return id, nil
	}
	value, err := w.conn.first(context.Background(), "INSERT INTO tags (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET key = key RETURNING id", tag.Key, tag.Value)
	if err != nil {
		return 0, err
	}
	id, _ := value.(int64)
	w.tagIDs.Add(tag, id)
	return id, nil
}

// AddChange appends a row to the log. It does not validate the data.
func (w *Writer) AddChange(change Change) error {
	kind := addition
	if change.Removal {
		kind = removal
	}
	w.changeID++
	err := w.conn.exec("INSERT INTO recent_changes (id, datetime, change, data) VALUES (?, ?, ?, ?)",
		w.changeID, change.At.UTC().Format(timeLayout), kind, change.Data)
	if err != nil {
		return w.describe("write a change", err)
	}
	return nil
}

// SetInfo sets a value for [Database.Info], in a table that the original doesn't know.
func (w *Writer) SetInfo(key, value string) error {
	err := w.conn.exec("INSERT INTO nar_herder_dump (key, value) VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", key, value)
	if err != nil {
		return w.describe("write its description", err)
	}
	return nil
}

// Finish creates the remaining indexes and syncs the file, but not its directory. It ends the
// Writer. The caller renames the file.
func (w *Writer) Finish(ctx context.Context) error {
	err := errors.Join(w.references.flush(w.conn), w.files.flush(w.conn), w.tags.flush(w.conn))
	if err == nil {
		err = w.conn.script(ctx, "COMMIT;"+lateIndexes)
	}
	if err == nil {
		err = w.indexHashes(ctx)
	}
	err = errors.Join(err, w.conn.close())
	w.conn = nil
	if err == nil {
		err = syncFile(w.path)
	}
	if err != nil {
		return errors.Join(w.describe("finish it", err), w.Abort())
	}
	w.ended = true
	return nil
}

// indexHashes creates the unique index. If items have the same hash, it first deletes all but
// the last of them.
func (w *Writer) indexHashes(ctx context.Context) error {
	// The statement may fail, and needs a journal to be rolled back. New pages take no room
	// in it.
	if err := w.conn.script(ctx, "PRAGMA journal_mode = memory"); err != nil {
		return err
	}
	err := w.conn.script(ctx, hashIndex)
	if primaryCode(err) != sqlite3.SQLITE_CONSTRAINT {
		return err
	}
	const dropRepeated = `
		CREATE TEMP TABLE repeated AS SELECT id FROM (
			SELECT id, substr(store_path, 12, 32) = lead(substr(store_path, 12, 32)) OVER (ORDER BY substr(store_path, 12, 32), id) AS again
			FROM narinfos) WHERE again;
		DELETE FROM narinfo_files WHERE narinfo_id IN (SELECT id FROM repeated);
		DELETE FROM narinfo_references WHERE narinfo_id IN (SELECT id FROM repeated);
		DELETE FROM narinfo_tags WHERE narinfo_id IN (SELECT id FROM repeated);
		DELETE FROM cached_narinfo_files WHERE narinfo_id IN (SELECT id FROM repeated);
		DELETE FROM narinfos WHERE id IN (SELECT id FROM repeated);
		DROP TABLE repeated;`
	return w.conn.script(ctx, dropRepeated+hashIndex)
}

// Abort ends the Writer and removes the file. After Finish it does nothing.
func (w *Writer) Abort() error {
	if w.ended {
		return nil
	}
	w.ended = true
	var err error
	if w.conn != nil {
		err = w.conn.close()
		w.conn = nil
	}
	if removeErr := os.Remove(w.path); removeErr != nil && !errors.Is(removeErr, fs.ErrNotExist) {
		err = errors.Join(err, removeErr)
	}
	return err
}

func (w *Writer) describe(tried string, err error) error {
	return describe("database "+w.path+": "+tried, err)
}

// rows collects rows of a table and inserts them together.
type rows struct {
	table   string // with its columns
	width   int
	waiting []driver.Value
	full    string // the statement for rowsAtOnce rows
}

func (r *rows) add(conn *connection, values ...driver.Value) error {
	r.waiting = append(r.waiting, values...)
	if len(r.waiting) < rowsAtOnce*r.width {
		return nil
	}
	if r.full == "" {
		r.full = r.statement(rowsAtOnce)
	}
	err := conn.exec(r.full, r.waiting...)
	r.waiting = r.waiting[:0]
	return err
}

// flush inserts the remaining rows.
func (r *rows) flush(conn *connection) error {
	if len(r.waiting) == 0 {
		return nil
	}
	err := conn.exec(r.statement(len(r.waiting)/r.width), r.waiting...)
	r.waiting = r.waiting[:0]
	return err
}

func (r *rows) statement(count int) string {
	row := "(?" + strings.Repeat(",?", r.width-1) + ")"
	return "INSERT INTO " + r.table + " VALUES " + row + strings.Repeat(","+row, count-1)
}

func textOrNull(s string) driver.Value {
	if s == "" {
		return nil
	}
	return s
}

func timeOrNull(item Item) driver.Value {
	if item.AddedAt.IsZero() {
		return nil
	}
	return item.AddedAt.UTC().Format(timeLayout)
}

func sizeOrNull(size int64) driver.Value {
	if size < 0 {
		return nil
	}
	return size
}

// urlPath returns a URL as the original stores it: the path with a leading slash, escaped as
// it is.
func urlPath(url string) string {
	if scheme, rest, ok := strings.Cut(url, "://"); ok && !strings.Contains(scheme, "/") {
		_, path, _ := strings.Cut(rest, "/")
		return "/" + path
	}
	return "/" + strings.TrimPrefix(url, "/")
}

// syncFile syncs a file to the disk.
func syncFile(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(file.Sync(), file.Close())
}
