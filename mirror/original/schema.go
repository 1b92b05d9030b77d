package original

import (
	"context"
	"fmt"
	"strings"
)

// tables is what a Writer makes, and what a reader hopes for.
//
// The ids of narinfos are given in ascending order, so that the indexes by them,
// which are there from the start, only grow at their end. That costs less than
// sorting all of them later.
const tables = `
	CREATE TABLE narinfos (
		id INTEGER PRIMARY KEY ASC,
		store_path TEXT NOT NULL,
		nar_hash TEXT NOT NULL,
		nar_size INTEGER NOT NULL,
		deriver TEXT,
		system TEXT,
		contents TEXT NOT NULL,
		added_at TEXT
	);
	CREATE TABLE narinfo_files (
		narinfo_id INTEGER NOT NULL REFERENCES narinfos (id),
		size INTEGER,
		compression TEXT,
		url TEXT NOT NULL
	);
	CREATE INDEX narinfo_files_narinfo_id ON narinfo_files (narinfo_id);
	CREATE TABLE narinfo_references (
		narinfo_id INTEGER NOT NULL REFERENCES narinfos (id),
		store_path TEXT NOT NULL
	);
	CREATE INDEX narinfo_references_narinfo_id ON narinfo_references (narinfo_id);
	CREATE TABLE tags (
		id INTEGER PRIMARY KEY ASC,
		key TEXT NOT NULL,
		value TEXT NOT NULL
	);
	CREATE UNIQUE INDEX tags_key_value ON tags (key, value);
	CREATE TABLE narinfo_tags (
		narinfo_id INTEGER NOT NULL REFERENCES narinfos (id),
		tag_id INTEGER NOT NULL REFERENCES tags (id)
	);
	CREATE INDEX narinfo_tags_narinfo_id ON narinfo_tags (narinfo_id);
	CREATE TABLE recent_changes (
		id INTEGER PRIMARY KEY ASC,
		datetime TEXT NOT NULL,
		change TEXT NOT NULL,
		data TEXT NOT NULL
	);
	CREATE TABLE cached_narinfo_files (
		id INTEGER PRIMARY KEY ASC,
		narinfo_id INTEGER NOT NULL REFERENCES narinfos (id),
		size INTEGER,
		compression TEXT
	);
	CREATE INDEX cached_narinfo_files_narinfo_id ON cached_narinfo_files (narinfo_id);
	CREATE TABLE nar_herder_dump (
		key TEXT PRIMARY KEY,
		value TEXT
	);`

// lateIndexes are made when all rows are there. The first has to come last: it
// finds out whether two items have the same hash.
const lateIndexes = `
	CREATE INDEX recent_changes_datetime ON recent_changes (datetime);`

const hashIndex = `CREATE UNIQUE INDEX narinfos_store_hash ON narinfos (substr(store_path, 12, 32))`

// timeLayout is how the original writes times, all UTC.
const timeLayout = "2006-01-02 15:04:05"

// The values of recent_changes.change.
const (
	addition = "addition"
	removal  = "removal"
)

// layout is what a database has of the schema.
type layout struct {
	items   string // the query for a page of narinfos
	addedAt bool
	// tags and cached are the queries for what belongs to the narinfos of a
	// page, empty without the tables.
	tags, cached string
	changes      bool
	info         bool
	// copies are temporary tables to be made first, as a table that is read for
	// each page has no index: by their names, how to make them.
	copies map[string]string
}

// has reports whether there is an ordinary table of that name with the columns. A
// view, or a column that is computed, could be anything, also without an end.
func (c *connection) has(ctx context.Context, table string, columns ...string) (bool, error) {
	n, err := c.first(ctx, "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND rootpage > 0 AND name = ? COLLATE NOCASE", table)
	if err != nil || n == int64(0) {
		return false, err
	}
	for _, column := range columns {
		n, err := c.first(ctx, "SELECT count(*) FROM pragma_table_info(?) WHERE name = ? COLLATE NOCASE", table, column)
		if err != nil || n == int64(0) {
			return false, err
		}
	}
	return true, nil
}

// hasRowIDs reports whether the rows of a table have ids by which they can be read
// in steps.
func (c *connection) hasRowIDs(ctx context.Context, table string) (bool, error) {
	n, err := c.first(ctx, "SELECT count(*) FROM pragma_table_list(?) WHERE schema = 'main' AND NOT wr", table)
	return n != int64(0), err
}

// indexed reports whether a table has an index that begins with the column.
func (c *connection) indexed(ctx context.Context, table, column string) (bool, error) {
	n, err := c.first(ctx, `SELECT count(*) FROM pragma_index_list(?) l, pragma_index_info(l.name) i
		WHERE i.seqno = 0 AND i.name = ? COLLATE NOCASE AND NOT l.partial`, table, column)
	return n != int64(0), err
}

// look finds out what the database has. The error is [ErrNotOriginal] when it
// has no narinfos.
func look(ctx context.Context, c *connection) (*layout, error) {
	contents, err := c.has(ctx, "narinfos", "contents")
	if err != nil {
		return nil, err
	}
	if !contents {
		return nil, fmt.Errorf("%w: it has no table narinfos with a column contents: name a database or a dump of an original Nar Herder", ErrNotOriginal)
	}
	l := &layout{copies: make(map[string]string)}
	if l.addedAt, err = c.has(ctx, "narinfos", "added_at"); err != nil {
		return nil, err
	}
	addedAt := "NULL"
	if l.addedAt {
		addedAt = shortText("added_at")
	}
	l.items = `SELECT rowid, octet_length(contents), ` + limited("contents", maxContents) + `, ` + addedAt + `
		FROM narinfos WHERE rowid > ? ORDER BY rowid LIMIT ?`
	ordered, err := c.hasRowIDs(ctx, "narinfos")
	if err != nil {
		return nil, err
	}
	if !ordered {
		return nil, fmt.Errorf("%w: its table narinfos has no row ids: name a database or a dump of an original Nar Herder", ErrNotOriginal)
	}
	if l.changes, err = c.has(ctx, "recent_changes", "datetime", "change", "data"); err != nil {
		return nil, err
	}
	if l.changes {
		if l.changes, err = c.hasRowIDs(ctx, "recent_changes"); err != nil {
			return nil, err
		}
	}
	if l.info, err = c.has(ctx, "nar_herder_dump", "key", "value"); err != nil {
		return nil, err
	}
	// The rest goes by the narinfos' ids.
	ids, err := c.has(ctx, "narinfos", "id")
	if err != nil || !ids {
		return l, err
	}
	has1, err := c.has(ctx, "tags", "id", "key", "value")
	if err != nil {
		return nil, err
	}
	has2, err := c.has(ctx, "narinfo_tags", "narinfo_id", "tag_id")
	if err != nil {
		return nil, err
	}
	// CROSS JOIN keeps SQLite from another order, which would read all of a
	// table for each page.
	if has1 && has2 {
		table, err := l.byNarinfo(ctx, c, "narinfo_tags", "tag_id")
		if err != nil {
			return nil, err
		}
		l.tags = `SELECT n.rowid, ` + limited("CAST(t.key AS TEXT)", maxTag) + `, ` + limited("CAST(t.value AS TEXT)", maxTag) + `
			FROM narinfos n CROSS JOIN ` + table + ` nt ON nt.narinfo_id = n.id CROSS JOIN tags t ON t.id = nt.tag_id
			WHERE n.rowid > ? AND n.rowid <= ?`
	}
	cached, err := c.has(ctx, "cached_narinfo_files", "narinfo_id", "compression", "size")
	if err != nil {
		return nil, err
	}
	if cached {
		table, err := l.byNarinfo(ctx, c, "cached_narinfo_files", "compression", "size")
		if err != nil {
			return nil, err
		}
		l.cached = `SELECT n.rowid, ` + limited("CAST(f.compression AS TEXT)", maxTag) + `, CAST(f.size AS INTEGER)
			FROM narinfos n CROSS JOIN ` + table + ` f ON f.narinfo_id = n.id WHERE n.rowid > ? AND n.rowid <= ?`
	}
	return l, nil
}

// byNarinfo returns the name of the table, or of a copy of it with an index by
// narinfo, which is yet to be made.
func (l *layout) byNarinfo(ctx context.Context, c *connection, table string, columns ...string) (string, error) {
	indexed, err := c.indexed(ctx, table, "narinfo_id")
	if err != nil || indexed {
		return table, err
	}
	name := "copy_of_" + table
	l.copies[name] = fmt.Sprintf("CREATE TEMP TABLE %[1]s AS SELECT narinfo_id, %[3]s FROM %[2]s; CREATE INDEX temp.%[1]s_narinfo_id ON %[1]s (narinfo_id)",
		name, table, strings.Join(columns, ", "))
	return "temp." + name, nil
}

// limited is an expression that is NULL where it would have too many bytes.
func limited(expression string, most int) string {
	return fmt.Sprintf("CASE WHEN octet_length(%[1]s) <= %[2]d THEN %[1]s END", expression, most)
}

// shortText is the beginning of a column as text, whatever its type.
func shortText(column string) string { return "CAST(substr(" + column + ", 1, 64) AS TEXT)" }
