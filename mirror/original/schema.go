package original

import (
	"context"
	"fmt"
	"strings"
)

// tables is the schema that a Writer creates. A reader may find less.
//
// The ids of narinfos ascend, so the indexes by them, which exist from the start, only grow
// at their end. That costs less than sorting them later.
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

// lateIndexes are created after all rows are written.
const lateIndexes = `
	CREATE INDEX recent_changes_datetime ON recent_changes (datetime);`

// hashIndex is created last, because it fails if two items have the same hash.
const hashIndex = `CREATE UNIQUE INDEX narinfos_store_hash ON narinfos (substr(store_path, 12, 32))`

// timeLayout is the original's format of times, which are UTC.
const timeLayout = "2006-01-02 15:04:05"

// The values of recent_changes.change.
const (
	addition = "addition"
	removal  = "removal"
)

// layout is the part of the schema that a database has.
type layout struct {
	items   string // the query for a page of narinfos
	addedAt bool
	// tags and cached are the queries for the tags and cached nars of a page of narinfos;
	// "" without the tables.
	tags, cached string
	changes      bool
	info         bool
	// copies are statements that create temporary tables, by the tables' names: copies of
	// tables that lack an index, which each page would need.
	copies map[string]string
}

// has reports whether there is an ordinary table of that name with the columns. Views and
// computed columns don't count: reading one could take for ever.
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

// hasRowIDs reports whether the rows of a table have ids, which reading in pages needs.
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

// look reads the layout of a database. The error is [ErrNotOriginal] if it has no narinfos.
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
	// The other tables refer to narinfos by this id.
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
	// CROSS JOIN fixes the order of the tables. In another order, SQLite would read a whole
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

// byNarinfo returns the name of the table if it has an index by narinfo. Otherwise it returns
// the name of a copy with such an index, and adds the copy to copies.
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

// limited returns an expression that is NULL if the given one has too many bytes.
func limited(expression string, most int) string {
	return fmt.Sprintf("CASE WHEN octet_length(%[1]s) <= %[2]d THEN %[1]s END", expression, most)
}

// shortText returns an expression for the beginning of a column of any type, as text.
func shortText(column string) string { return "CAST(substr(" + column + ", 1, 64) AS TEXT)" }
