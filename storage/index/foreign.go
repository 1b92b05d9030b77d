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

// CopySum is the setting of a copy with the sum of its rows.
const CopySum = "dump.sum"

// Limits of what is read of a file that came from elsewhere.
const (
	maxSetting      = 4 << 10
	maxDictionaries = 16
	maxDictionary   = 1 << 20
)

// dictionarySum tells dictionaries from texts in a sum; texts have the number of one.
const dictionarySum = -1

// Foreign is a file that another instance has made with [Index.Copy], as far as it is
// read here: texts and their times, and of what it is a copy. Whatever else is in it,
// be it damaged or made to hurt, isn't looked at: no other table, index, trigger or view.
type Foreign struct {
	// Instance and LastChange are of what, and up to where, it is a copy.
	Instance   string
	LastChange int64
	// Items is how many it should have.
	Items int64

	path         string
	files        *vfs.FS // nil for a file of the machine
	conn         *connection
	sum          string // "" where it has none
	dictionaries rowsum.Sum
	// own says that the built-in dictionary is the only one there, so that texts which were
	// compressed with it can be kept as they are: with others, they could be read there alone.
	onlyBuiltin bool
	decoder     *zstd.Decoder
}

// ErrNoSum says that a copy was made by an older version, so that nothing tells whether
// its rows are as they were written.
var ErrNoSum = errors.New("it has no sum of its rows")

// OpenForeign opens such a file for reading. Nothing is changed in it or beside it. The
// error is [ErrForeign], [ErrNewerVersion], [ErrNoSum], or says what else is wrong.
func OpenForeign(ctx context.Context, path string) (*Foreign, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("look at the copy %s: %w", path, err)
	}
	return openForeign(ctx, path, fileName(absolute)+"?", nil)
}

// OpenForeignIn is OpenForeign for a file of another file system than the machine's. The
// file is read in the order in which [Index.Copy] writes it, for the most part.
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

// look reads what the file says of itself.
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

// hasTable makes sure that there is an ordinary table of that name with the columns. A
// view, or a column that is computed, could be anything, also without an end.
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

// atMost is an expression that is NULL where the column has too many bytes.
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

// ForeignRow is a text as the file has it, which is to be read with [Foreign.Text].
type ForeignRow struct {
	ID      int64
	AddedAt time.Time

	dictionary int64
	stored     []byte
}

// Rows goes through all rows, in the order in which items came. An error ends it: it is
// [ErrUnsound] where the rows are not those that were written, which is only known at
// the end.
func (f *Foreign) Rows(ctx context.Context) iter.Seq2[ForeignRow, error] {
	return func(yield func(ForeignRow, error) bool) {
		sum := f.dictionaries
		var last int64
		stopped := false
		// NOT INDEXED, as an index of theirs may say anything. A tree of pages that leads to
		// itself has ids twice.
		err := f.conn.rows("SELECT n.rowid, n.dictionary, "+atMost("n.text", narinfo.MaxSize)+", i.added_at FROM narinfos n NOT INDEXED CROSS JOIN items i NOT INDEXED ON i.rowid = n.rowid ORDER BY n.rowid", nil,
			func(row []driver.Value) (bool, error) {
				if err := ctx.Err(); err != nil {
					return false, err
				}
				id, ok1 := row[0].(int64)
				dictionary, ok2 := row[1].(int64)
				at, ok3 := row[3].(int64)
				if !ok1 || !ok2 || !ok3 || id <= last {
					return false, fmt.Errorf("%w: its rows are no rows of an index in order", ErrUnsound)
				}
				last = id
				stored := blob(row[2])
				sum.Add(at, dictionary, stored)
				stopped = !yield(ForeignRow{ID: id, AddedAt: time.UnixMilli(at).UTC(), dictionary: dictionary, stored: stored}, nil)
				return !stopped, nil
			})
		if err == nil && !stopped && sum.String() != f.sum {
			err = fmt.Errorf("%w: the sum of its rows is %s, and not %.80q", ErrUnsound, sum.String(), f.sum)
		}
		if err != nil && !stopped {
			yield(ForeignRow{}, describe("read the copy "+f.path, err))
		}
	}
}

// Size is how many bytes the text has at the most.
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

// Text returns the text of a row, in the memory of buffer if it fits. It may be called by
// several goroutines at once.
func (f *Foreign) Text(row ForeignRow, buffer []byte) ([]byte, error) {
	if row.dictionary == uncompressed {
		return append(buffer[:0], row.stored...), nil
	}
	text, err := f.decoder.DecodeAll(row.stored, buffer[:0])
	if most := row.Size(); err == nil && len(text) > most { // of several frames, say
		err = fmt.Errorf("it has %d bytes, and says that it has %d", len(text), most)
	}
	if err != nil {
		return nil, fmt.Errorf("decompress a narinfo with dictionary %d: %w", row.dictionary, err)
	}
	return text, nil
}

// Close ends the reading.
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
