package original

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"nar-herder/narinfo"
)

// Limits against malicious databases.
const (
	// maxContents bounds the bytes of a narinfo's text, which may be stored in UTF-16.
	maxContents = 2 * narinfo.MaxSize
	// maxTag bounds the bytes of a tag's key or value.
	maxTag = 4 << 10
	// maxTags bounds the tags, and the cached files, of one item, and maxTagBytes their
	// bytes.
	maxTags     = 1000
	maxTagBytes = 64 << 10
	// maxDamaged bounds the bytes of the value of [DamagedKey].
	maxDamaged = 16 << 20

	// pageRows and pageBytes end a page.
	pageRows  = 500
	pageBytes = 4 << 20
)

// Database is a database of the original that is being read. Its methods may be
// called from several goroutines at once, and take turns.
type Database struct {
	path   string
	layout *layout

	mu     sync.Mutex // guards what follows
	conn   *connection
	copied bool
}

// Path returns the file name with which the database was opened.
func (d *Database) Path() string { return d.path }

// Close closes the database and releases the lock of [OpenLocked].
func (d *Database) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn.close()
}

// do calls f with the connection.
func (d *Database) do(ctx context.Context, tried string, f func(*connection) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	err := ctx.Err()
	if err == nil {
		err = f(d.conn)
	}
	if err != nil && ctx.Err() == nil {
		return describe("database "+d.path+": "+tried, err)
	}
	return err
}

// integer runs a query for one number.
func (d *Database) integer(ctx context.Context, tried, query string, args ...driver.Value) (n int64, err error) {
	err = d.do(ctx, tried, func(c *connection) error {
		value, err := c.first(ctx, query, args...)
		n, _ = value.(int64)
		return err
	})
	return n, err
}

// Count returns the number of narinfos.
func (d *Database) Count(ctx context.Context) (int64, error) {
	return d.integer(ctx, "count its narinfos", "SELECT count(*) FROM narinfos")
}

// CountUpTo returns the number of narinfos up to and including an id.
func (d *Database) CountUpTo(ctx context.Context, id int64) (int64, error) {
	return d.integer(ctx, "count its narinfos", "SELECT count(*) FROM narinfos WHERE rowid <= ?", id)
}

// result is an item or an error.
type result[T any] struct {
	value T
	err   error
}

// Items iterates over the narinfos with ids above afterID, in their order; [FromStart] for
// all. It locks nothing between pages. The texts are not validated, and are the caller's. A
// time that makes no sense counts as unknown.
//
// A [RowError] concerns one row: the iteration may continue. Any other error ends it.
func (d *Database) Items(ctx context.Context, afterID int64) iter.Seq2[Item, error] {
	return func(yield func(Item, error) bool) {
		for last := afterID; ; {
			var page []result[Item]
			next := last
			err := d.do(ctx, fmt.Sprintf("read its narinfos behind row %d", last), func(c *connection) (err error) {
				page, next, err = d.page(ctx, c, last)
				return err
			})
			for _, r := range page {
				if !yield(r.value, r.err) {
					return
				}
			}
			if err != nil {
				yield(Item{}, err)
				return
			}
			if next == last {
				return
			}
			last = next
		}
	}
}

// page reads some narinfos with ids above the given one, and returns the id of the last.
func (d *Database) page(ctx context.Context, c *connection, after int64) (page []result[Item], last int64, err error) {
	if !d.copied {
		for _, script := range d.layout.copies {
			if err := c.script(ctx, script); err != nil {
				return nil, after, fmt.Errorf("copy a table that lacks an index: %w", err)
			}
		}
		d.copied = true
	}
	last = after
	size := 0
	at := make(map[int64]int) // the position of an id in the page
	err = c.rows(ctx, d.layout.items, []driver.Value{after, int64(pageRows)}, func(row []driver.Value) (bool, error) {
		id, ok := row[0].(int64)
		if !ok || id <= last {
			return false, errors.New("its row ids are no ascending numbers: the file is damaged")
		}
		last = id
		text, err := textColumn(row[2], row[1])
		if err != nil {
			page = append(page, result[Item]{Item{ID: id}, &RowError{"narinfos", id, err}})
			return true, nil
		}
		item := Item{ID: id, Text: text}
		item.AddedAt, _ = timeColumn(row[3])
		at[id] = len(page)
		page = append(page, result[Item]{value: item})
		size += len(text)
		return size < pageBytes, nil
	})
	if err != nil || last == after {
		return page, last, err
	}
	var odd []result[Item]
	// belongs iterates over rows that begin with a narinfo's id and a name.
	belongs := func(table, query string, count func(*Item) int, add func(item *Item, row []driver.Value) bool) error {
		if query == "" {
			return nil
		}
		sizes := make(map[int64]int)
		return c.rows(ctx, query, []driver.Value{after, last}, func(row []driver.Value) (bool, error) {
			id, _ := row[0].(int64)
			i, ok := at[id]
			if !ok {
				return true, nil // its narinfo could not be read
			}
			for _, value := range row {
				if text, ok := value.(string); ok {
					sizes[id] += len(text)
				}
			}
			var problem error
			switch item := &page[i].value; {
			case count(item) == maxTags || sizes[id] > maxTagBytes:
				problem = fmt.Errorf("narinfo %d has more than %d rows, or %d bytes, there: the rest is left out", id, maxTags, maxTagBytes)
				delete(at, id)
			case !add(item, row):
				problem = fmt.Errorf("a row of narinfo %d has no usable values", id)
			}
			if problem != nil && len(odd) < pageRows {
				odd = append(odd, result[Item]{Item{ID: id}, &RowError{table, id, problem}})
			}
			return true, nil
		})
	}
	err = belongs("narinfo_tags", d.layout.tags, func(item *Item) int { return len(item.Tags) }, func(item *Item, row []driver.Value) bool {
		key, ok1 := row[1].(string)
		value, ok2 := row[2].(string)
		if ok1 && ok2 {
			item.Tags = append(item.Tags, Tag{key, value})
		}
		return ok1 && ok2
	})
	if err == nil {
		err = belongs("cached_narinfo_files", d.layout.cached, func(item *Item) int { return len(item.Cached) }, func(item *Item, row []driver.Value) bool {
			compression, ok := row[1].(string)
			size, sized := row[2].(int64)
			if !sized || size < 0 {
				size = -1
			}
			if ok && compression != "" {
				item.Cached = append(item.Cached, Cached{compression, size})
			}
			return ok && compression != ""
		})
	}
	return append(odd, page...), last, err
}

// textColumn is a narinfo as text or a blob.
func textColumn(value, octets driver.Value) ([]byte, error) {
	var text []byte
	switch v := value.(type) {
	case string:
		text = []byte(v)
	case []byte:
		text = v
	case nil:
		if n, ok := octets.(int64); ok && n > maxContents {
			return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", narinfo.ErrTooLarge, n, narinfo.MaxSize)
		}
		return nil, errors.New("it has no text")
	default:
		return nil, fmt.Errorf("it has a number instead of a text: %v", v)
	}
	if len(text) == 0 {
		return nil, errors.New("it has no text")
	}
	if len(text) > narinfo.MaxSize {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are allowed", narinfo.ErrTooLarge, len(text), narinfo.MaxSize)
	}
	return text, nil
}

// Changes iterates over the log in the order in which the instance wrote it. Its errors are
// as those of [Database.Items].
func (d *Database) Changes(ctx context.Context) iter.Seq2[Change, error] {
	return d.ChangesAfter(ctx, FromStart)
}

// ChangesAfter is [Database.Changes] for ids above the given one.
func (d *Database) ChangesAfter(ctx context.Context, id int64) iter.Seq2[Change, error] {
	query := `SELECT rowid, ` + shortText("datetime") + `, ` + shortText("change") + `, octet_length(data), ` + limited("data", maxContents) + `
		FROM recent_changes WHERE rowid > ? ORDER BY rowid LIMIT ?`
	return func(yield func(Change, error) bool) {
		if !d.layout.changes {
			return
		}
		for last := id; ; {
			var page []result[Change]
			size, before := 0, last
			err := d.do(ctx, fmt.Sprintf("read its log behind row %d", last), func(c *connection) error {
				return c.rows(ctx, query, []driver.Value{before, int64(pageRows)}, func(row []driver.Value) (bool, error) {
					id, ok := row[0].(int64)
					if !ok || id <= last {
						return false, errors.New("its row ids are no ascending numbers: the file is damaged")
					}
					last = id
					change, err := changeFrom(row[1], row[2], row[3], row[4])
					change.ID = id
					if err != nil {
						page = append(page, result[Change]{Change{ID: id}, &RowError{"recent_changes", id, err}})
						return true, nil
					}
					page = append(page, result[Change]{value: change})
					size += len(change.Data)
					return size < pageBytes, nil
				})
			})
			for _, r := range page {
				if !yield(r.value, r.err) {
					return
				}
			}
			if err != nil {
				yield(Change{}, err)
				return
			}
			if last == before {
				return
			}
		}
	}
}

// changeFrom reads the columns of a change.
func changeFrom(datetime, kind, octets, data driver.Value) (Change, error) {
	at, ok := timeColumn(datetime)
	if !ok {
		return Change{}, fmt.Errorf("it has no time: %.80q", fmt.Sprint(datetime))
	}
	text, err := textColumn(data, octets)
	if err != nil {
		return Change{}, err
	}
	switch kind {
	case addition, removal:
		return Change{At: at, Removal: kind == removal, Data: string(text)}, nil
	}
	return Change{}, fmt.Errorf("it is neither an %s nor a %s: %.80q", addition, removal, fmt.Sprint(kind))
}

// lastRows is how many rows are read for the newest time, because a row may have none.
const lastRows = 1000

// LastAdded returns the time of the item that was added last; zero if unknown.
func (d *Database) LastAdded(ctx context.Context) (time.Time, error) {
	if !d.layout.addedAt {
		return time.Time{}, nil
	}
	return d.newest(ctx, "look for its newest narinfo", "SELECT "+shortText("added_at")+" FROM narinfos ORDER BY rowid DESC LIMIT ?", int64(lastRows))
}

// NewestChange returns the time of the newest change in the log; zero for none.
func (d *Database) NewestChange(ctx context.Context) (time.Time, error) {
	if !d.layout.changes {
		return time.Time{}, nil
	}
	const tried = "look for its newest change"
	newest, err := d.newest(ctx, tried, "SELECT "+shortText("max(datetime)")+" FROM recent_changes")
	if err != nil || !newest.IsZero() {
		return newest, err
	}
	return d.newest(ctx, tried, "SELECT "+shortText("datetime")+" FROM recent_changes ORDER BY rowid DESC LIMIT ?", int64(lastRows))
}

func (d *Database) newest(ctx context.Context, tried, query string, args ...driver.Value) (newest time.Time, err error) {
	err = d.do(ctx, tried, func(c *connection) error {
		return c.rows(ctx, query, args, func(row []driver.Value) (bool, error) {
			if at, ok := timeColumn(row[0]); ok && at.After(newest) {
				newest = at
			}
			return true, nil
		})
	})
	return newest, err
}

// Check reads the whole database, and checks that it is intact and has narinfos.
func (d *Database) Check(ctx context.Context) error {
	return d.do(ctx, "check that it is whole", func(c *connection) error {
		// The argument is the maximum number of problems to report.
		problem, err := c.first(ctx, "PRAGMA integrity_check(1)")
		if err != nil {
			return err
		}
		if problem != "ok" {
			return fmt.Errorf("%w: the file is damaged: fetch it again, or restore a copy: %.200q", ErrNotDatabase, fmt.Sprint(problem))
		}
		id, err := c.first(ctx, "SELECT rowid FROM narinfos LIMIT 1")
		if err == nil && id == nil {
			return errors.New("it has no narinfos: name another one")
		}
		return err
	})
}

// Info returns the values of [Writer.SetInfo]; none for a database of the original itself.
func (d *Database) Info(ctx context.Context) (map[string]string, error) {
	info := make(map[string]string)
	if !d.layout.info {
		return info, nil
	}
	query := "SELECT " + limited("CAST(key AS TEXT)", maxTag) + ", " + limited("CAST(value AS TEXT)", maxTag) + " FROM nar_herder_dump LIMIT ?"
	err := d.do(ctx, "read its description", func(c *connection) error {
		return c.rows(ctx, query, []driver.Value{int64(maxTags)}, func(row []driver.Value) (bool, error) {
			key, ok1 := row[0].(string)
			value, ok2 := row[1].(string)
			if ok1 && ok2 {
				info[key] = value
			}
			return true, nil
		})
	})
	return info, err
}

// Damaged returns the value of [DamagedKey], which may be longer than those of
// [Database.Info]; "" if nothing is damaged.
func (d *Database) Damaged(ctx context.Context) (damaged string, err error) {
	if !d.layout.info {
		return "", nil
	}
	query := "SELECT " + limited("CAST(value AS TEXT)", maxDamaged) + " FROM nar_herder_dump WHERE CAST(key AS TEXT) = ? LIMIT 1"
	err = d.do(ctx, "read its list of damaged items", func(c *connection) error {
		return c.rows(ctx, query, []driver.Value{DamagedKey}, func(row []driver.Value) (bool, error) {
			var ok bool
			if damaged, ok = row[0].(string); !ok {
				damaged = ManyDamaged
			}
			return true, nil
		})
	})
	return damaged, err
}
