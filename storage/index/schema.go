package index

import (
	"context"
	"errors"
	"fmt"
)

// ApplicationID is what the header of an index has as its application, in the
// field that SQLite keeps for that.
const ApplicationID = 0x4e617248

// keyIndex is made last by a [Builder].
const keyIndex = "CREATE UNIQUE INDEX items_by_key ON items (key)"

// migrations holds one step for each version of the schema; the version of a
// database, its user_version, is the number of steps it has seen. Steps only
// ever add: a step that has been released is never edited.
//
// The tables:
//
//   - items is the bookkeeping of each known item, apart from its text so that
//     passes over all items read little. key is made of the path's hash, see
//     [keyOf]: its index is all that is not written in the order of arrival,
//     so it is kept small. stored_files is a bit mask: bit N is set when the
//     bytes of the Nth file that the narinfo names are in the storage.
//     file_sizes is only there for narinfos without FileSize. mirrored is 1 where
//     the instance that this one mirrors has the item, and 0 where it came from
//     here alone.
//   - narinfos has the texts, compressed, by the ids of items, and the keys of
//     what they refer to. One with a time in withdrawn_at is not served any more, and
//     its item is removed after the time in delete_after, when no client can hold it.
//   - leftovers are the names of files that no row claims any more, until they are
//     deleted: rows go first, and who does it may be killed in between.
//   - pins are the hashes of items whose closures are to stay.
//   - runs and referrers are the way back, see references.go.
//   - recent_changes is the log that mirrors follow and that tells other
//     processes what to forget; see [Change].
//   - uses counts requests per item.
//   - cached_files are nars in compressions that were made here, and concern
//     this instance alone; see [CachedFile].
//   - checksums are those of files in the storage and of cached files; see [Checksum].
//   - the columns checksum are of texts, dictionaries and lines about cached files, as
//     they were written; see [checksumOf]. Migration fills them.
//   - totals is one row, kept true by each transaction.
var migrations = []string{
	`CREATE TABLE settings (
		key TEXT PRIMARY KEY,
		value TEXT NOT NULL
	) STRICT, WITHOUT ROWID;

	CREATE TABLE dictionaries (
		id INTEGER PRIMARY KEY,
		content BLOB NOT NULL
	) STRICT;

	CREATE TABLE items (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		key INTEGER NOT NULL,
		added_at INTEGER NOT NULL,
		stored_files INTEGER NOT NULL,
		stored_size INTEGER NOT NULL,
		file_sizes BLOB
	) STRICT;
	` + keyIndex + `;

	CREATE TABLE narinfos (
		id INTEGER PRIMARY KEY,
		hash BLOB NOT NULL,
		refs BLOB NOT NULL,
		dictionary INTEGER NOT NULL,
		text BLOB NOT NULL
	) STRICT;

	CREATE TABLE runs (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		level INTEGER NOT NULL,
		edges INTEGER NOT NULL
	) STRICT;

	CREATE TABLE referrers (
		run INTEGER NOT NULL,
		target INTEGER NOT NULL,
		referrer INTEGER NOT NULL,
		edges BLOB NOT NULL,
		PRIMARY KEY (run, target, referrer)
	) STRICT, WITHOUT ROWID;

	CREATE TABLE tags (
		id INTEGER PRIMARY KEY,
		key TEXT NOT NULL,
		value TEXT NOT NULL,
		UNIQUE (key, value)
	) STRICT;

	CREATE TABLE item_tags (
		item INTEGER NOT NULL REFERENCES items (id) ON DELETE CASCADE,
		tag INTEGER NOT NULL REFERENCES tags (id),
		PRIMARY KEY (item, tag)
	) STRICT, WITHOUT ROWID;
	CREATE INDEX item_tags_by_tag ON item_tags (tag, item);

	CREATE TABLE recent_changes (
		id INTEGER PRIMARY KEY AUTOINCREMENT,
		at INTEGER NOT NULL,
		kind INTEGER NOT NULL,
		hash BLOB NOT NULL,
		store_path TEXT
	) STRICT;

	CREATE TABLE uses (
		item INTEGER PRIMARY KEY REFERENCES items (id) ON DELETE CASCADE,
		count INTEGER NOT NULL,
		last_used INTEGER NOT NULL
	) STRICT;

	CREATE TABLE totals (
		one INTEGER PRIMARY KEY CHECK (one = 1),
		items INTEGER NOT NULL,
		stored_nars INTEGER NOT NULL,
		stored_size INTEGER NOT NULL
	) STRICT;
	INSERT INTO totals VALUES (1, 0, 0, 0);`,

	`CREATE TABLE cached_files (
		item INTEGER NOT NULL REFERENCES items (id) ON DELETE CASCADE,
		type TEXT NOT NULL,
		size INTEGER NOT NULL,
		last_used INTEGER NOT NULL,
		withdrawn_at INTEGER,
		PRIMARY KEY (item, type)
	) STRICT, WITHOUT ROWID;
	CREATE INDEX cached_files_by_use ON cached_files (type, last_used) WHERE withdrawn_at IS NULL;
	CREATE INDEX cached_files_withdrawn ON cached_files (type, withdrawn_at, size) WHERE withdrawn_at IS NOT NULL;`,

	`ALTER TABLE narinfos ADD COLUMN withdrawn_at INTEGER;
	CREATE INDEX narinfos_withdrawn ON narinfos (withdrawn_at) WHERE withdrawn_at IS NOT NULL;

	CREATE TABLE pins (
		hash BLOB PRIMARY KEY,
		at INTEGER NOT NULL
	) STRICT, WITHOUT ROWID;

	CREATE TABLE leftovers (
		name TEXT PRIMARY KEY
	) STRICT, WITHOUT ROWID;`,

	`ALTER TABLE items ADD COLUMN mirrored INTEGER NOT NULL DEFAULT 0;
	CREATE INDEX recent_changes_by_time ON recent_changes (at, id);`,

	`CREATE TABLE checksums (
		item INTEGER NOT NULL REFERENCES items (id) ON DELETE CASCADE,
		file TEXT NOT NULL,
		size INTEGER NOT NULL,
		changed INTEGER NOT NULL,
		sum BLOB NOT NULL,
		PRIMARY KEY (item, file)
	) STRICT, WITHOUT ROWID;`,

	`ALTER TABLE narinfos ADD COLUMN checksum INTEGER;
	ALTER TABLE dictionaries ADD COLUMN checksum INTEGER;
	ALTER TABLE cached_files ADD COLUMN checksum INTEGER;`,

	`ALTER TABLE narinfos ADD COLUMN delete_after INTEGER;
	CREATE INDEX narinfos_deletable ON narinfos (delete_after) WHERE delete_after IS NOT NULL;
	ALTER TABLE cached_files ADD COLUMN delete_after INTEGER;
	CREATE INDEX cached_files_deletable ON cached_files (type, delete_after) WHERE delete_after IS NOT NULL;` + staleTriggers,
}

// staleTriggers correct what an older process leaves when it writes, which had the database
// open while it was migrated. The columns are those that its statements name.
//
// One of version 5 leaves checksums of another text or size: they are cleared. One of
// version 6 sets the time of a withdrawal and not that of the deletion: it becomes a year
// later, which is safe, and which [Index.BoundTimes] shortens; or it clears the first and
// leaves the second, which is cleared as well.
const staleTriggers = `
	CREATE TRIGGER narinfos_stale AFTER UPDATE OF refs ON narinfos
	WHEN new.text IS NOT old.text AND new.checksum IS old.checksum
	BEGIN
		UPDATE narinfos SET checksum = NULL WHERE id = new.id;
	END;
	CREATE TRIGGER cached_files_stale AFTER UPDATE OF last_used ON cached_files
	WHEN new.size IS NOT old.size AND new.checksum IS old.checksum
	BEGIN
		UPDATE cached_files SET checksum = NULL WHERE item = new.item AND type = new.type;
	END;
	CREATE TRIGGER narinfos_due AFTER UPDATE OF withdrawn_at ON narinfos
	WHEN (new.withdrawn_at IS NULL) != (new.delete_after IS NULL) OR new.delete_after < new.withdrawn_at
	BEGIN
		UPDATE narinfos SET delete_after = withdrawn_at + 31536000000 WHERE id = new.id;
	END;
	CREATE TRIGGER cached_files_due AFTER UPDATE OF withdrawn_at ON cached_files
	WHEN (new.withdrawn_at IS NULL) != (new.delete_after IS NULL) OR new.delete_after < new.withdrawn_at
	BEGIN
		UPDATE cached_files SET delete_after = withdrawn_at + 31536000000 WHERE item = new.item AND type = new.type;
	END;`

// dropTriggers drops them from the main database.
const dropTriggers = `
	DROP TRIGGER main.narinfos_stale; DROP TRIGGER main.cached_files_stale;
	DROP TRIGGER main.narinfos_due; DROP TRIGGER main.cached_files_due;`

// checksumVersion is the first version of the schema with checksums of texts.
const checksumVersion = 6

// migrate creates the tables of a new database, and brings an older one to the
// newest version of the schema where the options allow that.
func migrate(ctx context.Context, conn *connection, path string, options Options, steps []string) (err error) {
	// Most opens find nothing to do, and must not wait for another
	// process's write lock to find that out.
	version, err := recognise(conn, path, len(steps))
	if err != nil || version == len(steps) {
		return err
	}
	if err := conn.script("BEGIN IMMEDIATE"); err != nil {
		return describe(fmt.Sprintf("database %s: lock it for creating or migrating it", path), err)
	}
	defer func() {
		if err != nil {
			_ = conn.script("ROLLBACK") // err says what went wrong
		}
	}()
	// Another process may have done it while this one waited for the lock.
	if version, err = recognise(conn, path, len(steps)); err != nil {
		return err
	}
	if err := options.accepts(path, version, len(steps)); err != nil {
		return err
	}
	if err := conn.applyMigrations(ctx, path, version, steps); err != nil {
		return err
	}
	if err = conn.script("COMMIT"); err != nil {
		return describe(fmt.Sprintf("database %s: finish migrating it", path), err)
	}
	return nil
}

// takeSteps brings the database from a version of the schema to the newest, within
// a transaction.
func (c *connection) applyMigrations(ctx context.Context, path string, version int, steps []string) error {
	for ; version < len(steps); version++ {
		if err := c.execContext(ctx, steps[version]); err != nil {
			return describe(fmt.Sprintf("database %s: migrate it from version %d to %d", path, version, version+1), err)
		}
		if version+1 == checksumVersion {
			if err := c.addChecksums(ctx); err != nil {
				return describe(fmt.Sprintf("database %s: add checksums to the narinfos", path), err)
			}
		}
		if version+1 == promiseVersion {
			if err := c.addPromises(); err != nil {
				return describe(fmt.Sprintf("database %s: add the times after which withdrawn items may be deleted", path), err)
			}
		}
	}
	// Pragmas take no bound parameters.
	err := c.script(fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", ApplicationID, len(steps)))
	if err != nil {
		return describe(fmt.Sprintf("database %s: finish migrating it", path), err)
	}
	return nil
}

// recognise returns the schema version of the database, 0 for an empty one.
func recognise(conn *connection, path string, newest int) (version int, err error) {
	// One view for all that is asked, as another process may just be making it.
	if err := conn.script("SAVEPOINT recognise"); err != nil {
		return 0, describe(fmt.Sprintf("database %s: read its header", path), err)
	}
	defer func() { err = errors.Join(err, conn.script("RELEASE recognise")) }()
	return recogniseIn(conn, path, newest)
}

func recogniseIn(conn *connection, path string, newest int) (int, error) {
	id, err1 := conn.integer("PRAGMA application_id")
	version, err2 := conn.integer("PRAGMA user_version")
	tables, err3 := conn.integer("SELECT count(*) FROM sqlite_schema")
	// Whatever its version, the original has a table narinfos with the texts
	// in a column contents.
	original, err4 := conn.integer("SELECT count(*) FROM pragma_table_info('narinfos') WHERE name = 'contents'")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return 0, describe(fmt.Sprintf("database %s: read its header", path), err)
	}
	switch {
	case id == ApplicationID && version > int64(newest):
		return 0, fmt.Errorf("%w: %s has schema version %d, this program knows up to %d: run a newer nar-herder, or name another file with --database",
			ErrNewerVersion, path, version, newest)
	case id == ApplicationID:
		return int(version), nil
	case tables == 0:
		return 0, nil
	case original > 0:
		return 0, fmt.Errorf("%w: %s was written by the original Nar Herder (Guile), whose schema differs: start the server once with it, "+
			"which converts it and keeps the old file, or run 'nar-herder convert %[2]s NEW-FILE' and name that with --database", ErrOriginal, path)
	}
	return 0, fmt.Errorf("%w: %s is an SQLite database of another program: name another file with --database", ErrForeign, path)
}
