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

// Settings of a copy: the copied instance, the last change in the copy, and the time of the
// copy in [time.RFC3339] format. It has no other settings, so that it gets an instance id
// of its own when it is opened for writing.
const (
	CopyInstance   = "dump.instance"
	CopyLastChange = "dump.last_change"
	CopyCreatedAt  = "dump.created_at"
)

// copyCache is the page cache of a connection that writes or reads a copy, in bytes. Both
// access the tables sequentially.
const copyCache = 8 << 20

// Copied is the result of [Index.Copy].
type Copied struct {
	// LastChange is the id of the newest change in the copy. Mark is its [Change.Mark], or
	// "" if it is not in the log any more.
	LastChange int64
	Mark       string
	// Items is the number of items in the copy.
	Items int64
	// Changes are the newest changes that concern mirrors, the oldest first.
	Changes []MirrorChange
	// Damaged are the items that were left out because of damage. Other missing items were
	// removed.
	Damaged []*Damage
}

// Copy writes a snapshot of the index to a new file, which another instance can start from.
// The copy is an index without withdrawn items, without the log, and without data that
// concerns only this instance. All its items are mirrored, and none is stored. Copy leaves
// out damaged items, unless there are too many, which is an error. It also returns at most
// changes newest changes of the snapshot. When Copy returns, the copy is verified and
// flushed to the disk, and needs no other file.
//
// Copy doesn't block writers. It blocks checkpoints while it copies the tables, which takes
// ten seconds for a million items. If it fails, or the context ends, it removes the file.
// An existing file is an error.
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
		// Freeing gigabytes takes longer than a supervisor waits.
		if err != nil && ctx.Err() == nil {
			if removeErr := os.Remove(target); !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}()
	// SQLite opens the file by name; closing it earlier would drop its locks.
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
		// No other process knows the file, and nothing has to be rolled back.
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
		return Copied{}, fmt.Errorf("%w: it has schema version %d now, this program knows %d: restart the server with the newer version", ErrNewerVersion, version, len(migrations))
	}
	for _, step := range migrations {
		if err := c.execContext(ctx, step); err != nil {
			return Copied{}, err
		}
	}
	// SQLite copies rows without decoding them only into tables without triggers.
	if err := c.script(dropTriggers + "BEGIN"); err != nil {
		return Copied{}, err
	}
	// The first read of the live tables determines the snapshot.
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
	// The copy lacks withdrawn items, so their additions in the log are skipped.
	if copied.Changes, err = x.newest(c, changes); err != nil {
		return Copied{}, err
	}
	// The rest concerns only the copy.
	if err := c.script("COMMIT; DETACH live; BEGIN;" + staleTriggers); err != nil {
		return Copied{}, err
	}
	if copied.Damaged, err = x.dropDamaged(ctx, c); err != nil {
		return Copied{}, err
	}
	if err := x.cutDropped(ctx, c); err != nil {
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

// sumOfTexts returns the checksum of the rows that [Foreign.Rows] reads.
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

// copySteps fill the tables of a copy. If a statement copies a whole table with an
// identical schema, SQLite copies the rows and indexes without decoding them, several times
// as fast. So unwanted rows are deleted afterwards.
var copySteps = []string{
	"INSERT INTO main.dictionaries SELECT * FROM live.dictionaries",
	// Copy the short table first: mirrors read both together while they download the file.
	"INSERT INTO main.items SELECT * FROM live.items",
	"INSERT INTO main.narinfos SELECT * FROM live.narinfos",
	"INSERT INTO main.runs SELECT * FROM live.runs",
	"INSERT INTO main.referrers SELECT * FROM live.referrers",
	// Ids are never reused, because edges refer to them.
	`UPDATE main.sqlite_sequence SET seq = (SELECT s.seq FROM live.sqlite_sequence s WHERE s.name = main.sqlite_sequence.name)
		WHERE name IN (SELECT name FROM live.sqlite_sequence)`,
	// Times of 0 and below mean damage; see withdrawnAt.
	"DELETE FROM main.items WHERE id IN (SELECT id FROM main.narinfos WHERE withdrawn_at > 0)",
	"DELETE FROM main.narinfos WHERE withdrawn_at > 0",
	"UPDATE main.narinfos SET lost_at = NULL WHERE lost_at IS NOT NULL",
	"UPDATE main.items SET stored_files = 0, stored_size = 0, file_sizes = NULL, verified_at = 0, mirrored = 1, origin = 0, fresh_until = 0, drop_after = 0",
}

// Copy fails if more than maxDamaged items, and more than one in damagedShare, are damaged.
const (
	maxDamaged   = 100
	damagedShare = 100
)

// dropDamaged deletes damaged items from a copy, and counts the others.
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

// newest returns the newest changes that concern mirrors, the oldest first, from the live
// log and the texts of the copy.
func (x *Index) newest(c *connection, limit int) (found []MirrorChange, err error) {
	var changes []Change
	err = c.rows("SELECT id, at, kind, hash, store_path FROM live.recent_changes WHERE kind IN (1, 2) ORDER BY id DESC LIMIT ?", []driver.Value{int64(limit)},
		func(row []driver.Value) (bool, error) {
			change, err := changeOf(row)
			if errors.Is(err, ErrDamaged) {
				return true, nil // the items of the copy are valid without it
			}
			changes = append(changes, change)
			return true, err
		})
	if err != nil {
		return nil, err
	}
	for _, change := range slices.Backward(changes) {
		if found, err = x.appendChange(c, found, change); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// execContext runs long SQL text, and interrupts it when the context ends.
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

// checkIntegrity verifies the whole database.
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

// ErrUnsound means that a copy differs from what was written: the disk or the memory fails,
// or the index itself is damaged.
var ErrUnsound = errors.New("the copy is damaged")

// Snapshot is an immutable index, such as a copy.
type Snapshot struct {
	index Index
	conn  *connection
}

// OpenSnapshot opens a file that [Index.Copy] has made. It changes no file.
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

// Items iterates over the items that are not withdrawn, in insertion order. Only one
// iteration may run at a time.
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

// NewestItem returns the item with the latest time of addition, or nil if there are none.
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

// Close closes the copy.
func (s *Snapshot) Close() error {
	if s.index.codec != nil {
		s.index.codec.close()
	}
	return s.conn.close()
}
