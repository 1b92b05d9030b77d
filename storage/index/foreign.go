package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"modernc.org/sqlite/vfs"

	"nar-herder/internal/rowsum"
	"nar-herder/narinfo"
)

// CopySum is the setting of a copy with the checksum of its rows.
const CopySum = "dump.sum"

// Limits for files of other instances.
const (
	maxSetting      = 4 << 10
	maxDictionaries = 16
	maxDictionary   = 1 << 20
)

// dictionarySum distinguishes dictionaries from texts in a checksum. Texts have the id of
// their dictionary.
const dictionarySum = -1

// Foreign is a file that another instance has made with [Index.Copy]. Since it may be
// damaged or malicious, only texts, their times and a few settings are read: no other
// table, and no index, trigger or view.
type Foreign struct {
	// Instance identifies the copied index, and LastChange the last change in the copy.
	Instance   string
	LastChange int64
	// Items is the number of items according to the file.
	Items int64

	path         string
	files        *vfs.FS // nil for a local file
	conn         *connection
	sum          string // "" if missing
	dictionaries rowsum.Sum
	// onlyBuiltin means that the file has no dictionary except the built-in one, so that
	// its compressed texts can be copied unchanged.
	onlyBuiltin bool
	decoder     *zstd.Decoder
}

// ErrNoSum means that an older version made the copy, without a checksum to verify its
// rows.
var ErrNoSum = errors.New("it has no sum of its rows")

// OpenForeign opens such a file for reading, and changes no file. The error is
// [ErrForeign], [ErrNewerVersion] or [ErrNoSum], or describes the problem.
func OpenForeign(ctx context.Context, path string) (*Foreign, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("look at the copy %s: %w", path, err)
	}
	return openForeign(ctx, path, fileName(absolute)+"?", nil)
}

// OpenForeignIn is OpenForeign for a file in fsys. It reads the file mostly in the order in
// which [Index.Copy] writes it.
func OpenForeignIn(ctx context.Context, fsys fs.FS, name string) (*Foreign, error) {
	registered, files, err := vfs.New(fsys)
	if err != nil {
		return nil, fmt.Errorf("look at the copy %s: %w", name, err)
	}
	return openForeign(ctx, name, fileName(name)+"?vfs="+registered+"&", files)
}

func openForeign(ctx context.Context, path, dataSource string, files *vfs.FS) (_ *Foreign, err error) {
	tried := "look at the copy " + path
	f := &Foreign{path: path, files: files}
	f.conn, err = connect(ctx, dataSource+"mode=ro&immutable=1&_query_only=on"+
		"&_pragma=trusted_schema(off)&_pragma=cell_size_check(on)&_pragma=cache_size(-"+strconv.Itoa(copyCache/1024)+")")
	if err == nil {
		err = f.look(path)
	}
	if err != nil {
		return nil, errors.Join(describe(tried, err), f.Close())
	}
	return f, nil
}

// look reads the metadata of the file.
func (f *Foreign) look(path string) error {
	version, err := recognise(f.conn, path, len(migrations))
	if err != nil {
		return err
	}
	if version == 0 {
		return fmt.Errorf("%w: it is empty", ErrForeign)
	}
	for table, columns := range map[string][]string{
		"narinfos": {"dictionary", "text"}, "items": {"added_at"}, "settings": {"key", "value"}, "dictionaries": {"content"}, "totals": {"items"},
	} {
		if err := f.conn.hasTable(table, columns); err != nil {
			return err
		}
	}
	last := ""
	for name, value := range map[string]*string{CopyInstance: &f.Instance, CopyLastChange: &last, CopySum: &f.sum} {
		row, err := f.conn.first("SELECT "+atMost("value", maxSetting)+" FROM settings WHERE key = ?", name)
		if err != nil {
			return err
		}
		if row != nil {
			*value, _ = row[0].(string)
		}
	}
	if f.Instance == "" {
		return fmt.Errorf("%w: it does not say what it is a copy of", ErrForeign)
	}
	if f.sum == "" {
		return ErrNoSum
	}
	if f.LastChange, err = strconv.ParseInt(last, 10, 64); err != nil || f.LastChange < 0 {
		return fmt.Errorf("%w: the number of its last change is %.80q", ErrForeign, last)
	}
	if f.Items, err = f.conn.integer("SELECT items FROM totals"); err != nil {
		return err
	}
	return f.openDictionaries()
}

// hasTable checks that there is an ordinary table of that name with the columns. A view or
// a computed column could run any expression, even an endless one.
func (c *connection) hasTable(table string, columns []string) error {
	row, err := c.first("SELECT type, rootpage, ("+
		"SELECT count(*) FROM pragma_table_info(?1) WHERE name IN ('"+strings.Join(columns, "', '")+"')) FROM sqlite_schema WHERE name = ?1", table)
	if err != nil {
		return err
	}
	if row == nil || row[0] != "table" || row[1] == int64(0) || row[2] != int64(len(columns)) {
		return fmt.Errorf("%w: it has no table %s with the columns %s", ErrForeign, table, strings.Join(columns, ", "))
	}
	return nil
}

// atMost returns an expression that is NULL if the column is longer than most bytes.
func atMost(column string, most int) string {
	return fmt.Sprintf("CASE WHEN octet_length(%[1]s) <= %[2]d THEN %[1]s END", column, most)
}

func (f *Foreign) openDictionaries() error {
	options := []zstd.DOption{zstd.WithDecoderConcurrency(0), zstd.WithDecoderMaxMemory(narinfo.MaxSize)}
	count := 0
	err := f.conn.rows("SELECT rowid, "+atMost("content", maxDictionary)+" FROM dictionaries ORDER BY rowid LIMIT ?", []driver.Value{int64(maxDictionaries + 1)},
		func(row []driver.Value) (bool, error) {
			if count++; count > maxDictionaries {
				return false, fmt.Errorf("%w: it has over %d dictionaries", ErrForeign, maxDictionaries)
			}
			content := blob(row[1])
			f.dictionaries.Add(row[0].(int64), dictionarySum, content)
			if row[0] == int64(builtinID) {
				f.onlyBuiltin = string(content) == string(builtinDictionary)
			}
			options = append(options, zstd.WithDecoderDicts(content))
			return true, nil
		})
	f.onlyBuiltin = f.onlyBuiltin && count == 1
	if err == nil {
		f.decoder, err = zstd.NewReader(nil, options...)
	}
	return err
}

// ForeignRow is a compressed text; [Foreign.Text] decompresses it.
type ForeignRow struct {
	ID      int64
	AddedAt time.Time

	dictionary int64
	stored     []byte
}

// Rows iterates over all rows in insertion order. It stops at an error. The error is
// [ErrUnsound] if the rows differ from the ones that were written, which is known only at
// the end.
func (f *Foreign) Rows(ctx context.Context) iter.Seq2[ForeignRow, error] {
	return func(yield func(ForeignRow, error) bool) {
		sum := f.dictionaries
		var last int64
		stopped := false
		// NOT INDEXED, because an index of the file may contain anything. A cycle of pages
		// repeats ids.
		err := f.conn.rows("SELECT n.rowid, n.dictionary, "+atMost("n.text", narinfo.MaxSize)+", i.added_at FROM narinfos n NOT INDEXED CROSS JOIN items i NOT INDEXED ON i.rowid = n.rowid ORDER BY n.rowid", nil,
			func(row []driver.Value) (bool, error) {
				if err := ctx.Err(); err != nil {
					return false, err
				}
				id, ok1 := row[0].(int64)
				dictionary, ok2 := row[1].(int64)
				at, ok3 := row[3].(int64)
				if !ok1 || !ok2 || !ok3 || id <= last {
					return false, fmt.Errorf("%w: its rows are invalid or not in order", ErrUnsound)
				}
				last = id
				stored := blob(row[2])
				sum.Add(at, dictionary, stored)
				stopped = !yield(ForeignRow{ID: id, AddedAt: time.UnixMilli(at).UTC(), dictionary: dictionary, stored: stored}, nil)
				return !stopped, nil
			})
		if err == nil && !stopped && sum.String() != f.sum {
			err = fmt.Errorf("%w: the checksum of its rows is %s, want %.80q", ErrUnsound, sum.String(), f.sum)
		}
		if err != nil && !stopped {
			yield(ForeignRow{}, describe("read the copy "+f.path, err))
		}
	}
}

// Size returns the maximum length of the text in bytes.
func (row ForeignRow) Size() int {
	if row.dictionary == uncompressed {
		return len(row.stored)
	}
	var header zstd.Header
	if header.Decode(row.stored) != nil || !header.HasFCS || header.FrameContentSize > narinfo.MaxSize {
		return narinfo.MaxSize
	}
	return int(header.FrameContentSize)
}

// Text returns the text of a row, in the memory of buffer if it fits. It is safe for
// concurrent use.
func (f *Foreign) Text(row ForeignRow, buffer []byte) ([]byte, error) {
	if row.dictionary == uncompressed {
		return append(buffer[:0], row.stored...), nil
	}
	text, err := f.decoder.DecodeAll(row.stored, buffer[:0])
	if most := row.Size(); err == nil && len(text) > most { // for example, of several frames
		err = fmt.Errorf("it has %d bytes, its header says %d", len(text), most)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress a narinfo with dictionary %d: %w", row.dictionary, err)
	}
	return text, nil
}

// Close closes the file.
func (f *Foreign) Close() (err error) {
	if f.decoder != nil {
		f.decoder.Close()
	}
	if f.conn != nil {
		err = f.conn.close()
	}
	if f.files != nil {
		err = errors.Join(err, f.files.Close())
	}
	return err
}
