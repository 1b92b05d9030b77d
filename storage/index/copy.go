package index

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/internal/rowsum"
)

// Settings of a copy that say of what it is one: of the index of which instance,
// up to which of its changes, and when it was made, as [time.RFC3339] has it. A
// copy has no other settings, so that it gets an instance name of its own when it
// is opened.
const (
	CopyInstance   = "dump.instance"
	CopyLastChange = "dump.last_change"
	CopyCreatedAt  = "dump.created_at"
)

// copyCache is the page cache of a connection that makes or reads a copy, in
// bytes. Both go through the tables in their order.
const copyCache = 8 << 20

// Copied is what [Index.Copy] has written.
type Copied struct {
	// LastChange is the id of the newest change that the copy has, and Mark that change's
	// [Change.Mark]; "" where it has left the log.
	LastChange int64
	Mark       string
	// Items is the number of items in the copy.
	Items int64
	// Changes are the newest ones that concern mirrors, the oldest first.
	Changes []MirrorChange
	// Damaged are the items that are left out since they are damaged. The absence of
	// the others means that they were removed.
	Damaged []*Damage
}

// Copy writes the index as it is at one moment to a new file, for another
// instance to begin with: an index of its own, with the items that clients are
// told of, all of them mirrored and none stored, without the log and without what
// concerns this instance alone. Damaged items are left out, but too many of them are an
// error. It returns with at most so many changes of that
// moment. The copy was looked through when Copy returns, is safe on the disk, and
// can be read without anything beside it.
//
// Writers are not held up. The write-ahead log is not folded back while the tables
// are being copied, which takes ten seconds for a million items. When Copy fails,
// or the context ends, nothing is left of the file; one that was there before is
// an error, and stays.
func (x *Index) Copy(ctx context.Context, path string, at time.Time, changes int) (_ Copied, err error) {
	tried := fmt.Sprintf("copy the index %s to %s", x.path, path)
	source, err1 := filepath.Abs(x.path)
	target, err2 := filepath.Abs(path)
	if err := errors.Join(err1, err2); err != nil {
		return Copied{}, fmt.Errorf("%s: %w", tried, err)
	}
	file, err := disk.OpenFile(target, os.O_RDWR|os.O_EXCL, 0o644, disk.GroupWrites)
	if err != nil {
		return Copied{}, fmt.Errorf("%s: %w", tried, err)
	}
	defer func() {
		// To free gigabytes takes longer than who stops the program waits for.
		if err != nil && ctx.Err() == nil {
			if removeErr := os.Remove(target); !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}()
	// SQLite opens it by its name; closing it meanwhile would drop its locks.
	defer func() { err = errors.Join(err, file.Close()) }()
	copied, err := x.copyTo(ctx, source, target, at, changes)
	if err == nil {
		err = file.Sync()
	}
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return Copied{}, describe(tried, err)
	}
	return copied, nil
}

func (x *Index) copyTo(ctx context.Context, source, target string, at time.Time, changes int) (copied Copied, err error) {
	c, err := connect(ctx, fileName(target)+"?_pragma=page_size("+strconv.Itoa(pageSize)+")&_pragma=cache_size(-"+strconv.Itoa(copyCache/1024)+")"+
		// Nobody else knows the file, and there is nothing to go back to.
		"&_pragma=journal_mode(off)&_pragma=synchronous(off)&_pragma=temp_store(memory)")
	if err != nil {
		return Copied{}, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	if err := c.exec("ATTACH ? AS live", fileName(source)+"?mode=ro"); err != nil {
		return Copied{}, err
	}
	version, err := c.integer("PRAGMA live.user_version")
	if err != nil {
		return Copied{}, err
	}
	if int(version) != len(migrations) {
		return Copied{}, fmt.Errorf("%w: it has schema version %d by now, this program knows %d: restart it as the newer one", ErrNewerVersion, version, len(migrations))
	}
	for _, step := range migrations {
		if err := c.execContext(ctx, step); err != nil {
			return Copied{}, err
		}
	}
	// SQLite copies rows as they are only into tables without triggers.
	if err := c.script(dropTriggers + "BEGIN"); err != nil {
		return Copied{}, err
	}
	// The first look at the live tables settles which moment all others see.
	if copied.LastChange, err = c.integer("SELECT coalesce((SELECT seq FROM live.sqlite_sequence WHERE name = 'recent_changes'), 0)"); err != nil {
		return Copied{}, err
	}
	if copied.Mark, err = c.markOf("live.recent_changes", copied.LastChange); err != nil {
		return Copied{}, err
	}
	for _, step := range copySteps {
		if err := c.execContext(ctx, step); err != nil {
			return Copied{}, err
		}
	}
	// What was withdrawn is gone here, and so are additions of it in the log.
	if copied.Changes, err = x.newest(c, changes); err != nil {
		return Copied{}, err
	}
	// The rest concerns the copy alone.
	if err := c.script("COMMIT; DETACH live; BEGIN;" + staleTriggers); err != nil {
		return Copied{}, err
	}
	if copied.Damaged, err = x.dropDamaged(ctx, c); err != nil {
		return Copied{}, err
	}
	sum, err := c.sumOfTexts(ctx)
	if err != nil {
		return Copied{}, err
	}
	err = errors.Join(
		c.exec("INSERT INTO settings VALUES (?, ?), (?, ?), (?, ?), (?, ?)", CopySum, sum, CopyInstance, x.instance,
			CopyLastChange, strconv.FormatInt(copied.LastChange, 10), CopyCreatedAt, at.UTC().Format(time.RFC3339)),
		c.execContext(ctx, fmt.Sprintf("PRAGMA main.application_id = %d; PRAGMA main.user_version = %d; COMMIT", ApplicationID, len(migrations))))
	if err != nil {
		return Copied{}, err
	}
	if copied.Items, err = c.integer("SELECT items FROM totals"); err != nil {
		return Copied{}, err
	}
	return copied, c.checkIntegrity(ctx)
}

// sumOfTexts is the sum of the rows that [Foreign.Rows] reads.
func (c *connection) sumOfTexts(ctx context.Context) (string, error) {
	var sum rowsum.Sum
	err := c.rows("SELECT id, content FROM main.dictionaries", nil, func(row []driver.Value) (bool, error) {
		sum.Add(row[0].(int64), dictionarySum, blob(row[1]))
		return true, nil
	})
	if err != nil {
		return "", err
	}
	err = c.rows("SELECT i.added_at, n.dictionary, n.text FROM main.narinfos n CROSS JOIN main.items i ON i.id = n.id ORDER BY n.id", nil, func(row []driver.Value) (bool, error) {
		at, ok1 := row[0].(int64)
		dictionary, ok2 := row[1].(int64)
		if !ok1 || !ok2 {
			return false, fmt.Errorf("%w: %s", ErrUnsound, noInteger)
		}
		sum.Add(at, dictionary, blob(row[2]))
		return true, ctx.Err()
	})
	return sum.String(), err
}

// copySteps fill the tables of a copy. Where a statement takes all of a table that
// is the same in both, SQLite copies its rows and those of its indexes as they lie
// there, which is several times faster than anything that looks at them; so what is
// not wanted goes afterwards.
var copySteps = []string{
	"INSERT INTO main.dictionaries SELECT * FROM live.dictionaries",
	// First the short one: mirrors read both together, while the file is downloaded.
	"INSERT INTO main.items SELECT * FROM live.items",
	"INSERT INTO main.narinfos SELECT * FROM live.narinfos",
	"INSERT INTO main.runs SELECT * FROM live.runs",
	"INSERT INTO main.referrers SELECT * FROM live.referrers",
	// No id is given a second time, as edges name them.
	`UPDATE main.sqlite_sequence SET seq = (SELECT s.seq FROM live.sqlite_sequence s WHERE s.name = main.sqlite_sequence.name)
		WHERE name IN (SELECT name FROM live.sqlite_sequence)`,
	// Other times are damage, see withdrawnAt.
	"DELETE FROM main.items WHERE id IN (SELECT id FROM main.narinfos WHERE withdrawn_at > 0)",
	"DELETE FROM main.narinfos WHERE withdrawn_at > 0",
	"UPDATE main.items SET stored_files = 0, stored_size = 0, file_sizes = NULL, mirrored = 1",
}

// A copy is refused that would lack more than maxDamaged items and more than one in
// damagedShare.
const (
	maxDamaged   = 100
	damagedShare = 100
)

// dropDamaged deletes the damaged items from a copy, and counts the others.
func (x *Index) dropDamaged(ctx context.Context, c *connection) (all []*Damage, err error) {
	var count int
	err = c.rows(itemColumns, nil, func(row []driver.Value) (bool, error) {
		count++
		_, err := x.item(row)
		var damage *Damage
		if errors.As(err, &damage) {
			if hash, ok := x.writtenHash(row); ok {
				damage.Hash = hash
			}
			all, err = append(all, damage), nil
		}
		return true, errors.Join(err, ctx.Err())
	})
	if err != nil {
		return nil, err
	}
	if len(all) > max(maxDamaged, count/damagedShare) {
		return nil, fmt.Errorf("%d of %d items are damaged, the first: %w", len(all), count, all[0])
	}
	for _, damage := range all {
		err = errors.Join(err, c.exec("DELETE FROM items WHERE id = ?", damage.id), c.exec("DELETE FROM narinfos WHERE id = ?", damage.id))
	}
	return all, errors.Join(err, c.exec("UPDATE totals SET items = ?", int64(count-len(all))))
}

// newest returns the newest changes that concern mirrors, the oldest first: they
// are looked up in the live log, and their texts in the copy.
func (x *Index) newest(c *connection, limit int) (told []MirrorChange, err error) {
	var changes []Change
	err = c.rows("SELECT id, at, kind, hash, store_path FROM live.recent_changes WHERE kind IN (1, 2) ORDER BY id DESC LIMIT ?", []driver.Value{int64(limit)},
		func(row []driver.Value) (bool, error) {
			change, err := changeOf(row)
			if errors.Is(err, ErrDamaged) {
				return true, nil // the items of the copy are right without it
			}
			changes = append(changes, change)
			return true, err
		})
	if err != nil {
		return nil, err
	}
	for _, change := range slices.Backward(changes) {
		if told, err = x.appendChange(c, told, change); err != nil {
			return nil, err
		}
	}
	return told, nil
}

// long runs SQL text that may take long, and is interrupted when the context ends.
func (c *connection) execContext(ctx context.Context, text string, args ...driver.Value) error {
	err := c.retryBusy(func() error {
		_, err := c.conn.(driver.ExecerContext).ExecContext(ctx, text, namedValues(args))
		return err
	})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// sound looks through all of the database.
func (c *connection) checkIntegrity(ctx context.Context) error {
	rows, err := c.conn.(driver.QueryerContext).QueryContext(ctx, "PRAGMA integrity_check(1)", nil)
	if err != nil {
		return err
	}
	defer rows.Close()
	row := make([]driver.Value, 1)
	if err := rows.Next(row); err != nil {
		return errors.Join(ctx.Err(), err)
	}
	if row[0] != "ok" {
		return fmt.Errorf("%w: SQLite says: %v", ErrUnsound, row[0])
	}
	return nil
}

// ErrUnsound says that a copy is not what was written: the disk or the memory
// fails, or the index itself is damaged.
var ErrUnsound = errors.New("the copy is damaged")

// Snapshot is an index that nobody changes, such as a copy.
type Snapshot struct {
	index Index
	conn  *connection
}

// OpenSnapshot opens a file that [Index.Copy] has made, to read it. Nothing is
// changed in it or beside it.
func OpenSnapshot(ctx context.Context, path string) (_ *Snapshot, err error) {
	tried := "open the copy " + path
	absolute, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", tried, err)
	}
	conn, err := connect(ctx, fileName(absolute)+"?mode=ro&immutable=1&_query_only=on&_pragma=cache_size(-"+strconv.Itoa(copyCache/1024)+")")
	if err != nil {
		return nil, describe(tried, err)
	}
	s := &Snapshot{index: Index{path: path}, conn: conn}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	version, err := recognise(conn, path, len(migrations))
	if err != nil {
		return nil, err
	}
	if version != len(migrations) {
		return nil, fmt.Errorf("%s: its schema has version %d, a copy of this program has %d", tried, version, len(migrations))
	}
	if s.index.codec, err = openCodec(conn, false); err != nil {
		return nil, describe(tried, err)
	}
	return s, nil
}

// Items goes through the items that clients are told of, in the order they came. It
// is called for one pass at a time.
func (s *Snapshot) Items(ctx context.Context) iter.Seq2[*Item, error] {
	return func(yield func(*Item, error) bool) {
		stopped := false
		err := s.conn.rows(itemColumns+" WHERE n.withdrawn_at IS NULL ORDER BY i.id", nil, func(row []driver.Value) (bool, error) {
			item, err := s.index.item(row)
			if err = errors.Join(ctx.Err(), err); err != nil {
				return false, err
			}
			stopped = !yield(item, nil)
			return !stopped, nil
		})
		if err != nil && !stopped {
			yield(nil, describe("read the copy "+s.index.path, err))
		}
	}
}

// NewestItem returns the item that was added last, by its time; nil when there are
// none.
func (s *Snapshot) NewestItem() (item *Item, err error) {
	err = s.conn.rows(itemColumns+" WHERE n.withdrawn_at IS NULL ORDER BY i.added_at DESC, i.id DESC LIMIT 1", nil, func(row []driver.Value) (bool, error) {
		item, err = s.index.item(row)
		return false, err
	})
	if err != nil {
		return nil, describe("read the copy "+s.index.path, err)
	}
	return item, nil
}

// Close ends the reading.
func (s *Snapshot) Close() error {
	if s.index.codec != nil {
		s.index.codec.close()
	}
	return s.conn.close()
}
