package index

import (
	"context"
	"errors"
	"fmt"
)

// ApplicationID identifies an index in SQLite's application_id header field: "NarH" in
// ASCII.
const ApplicationID = 0x4e617248

// keyIndex is created last by a [Builder].
const keyIndex = "CREATE UNIQUE INDEX items_by_key ON items (key)"

// migrations has one step for each schema version. The version of a database, its
// user_version, is the number of steps it has run. Released steps are never edited.
//
// The tables:
//
//   - items has a row of bookkeeping for each known item, without its text, so that scans
//     of all items read little. key is derived from the path hash; see [keyOf]. Only its
//     index is not written in insertion order, so it is kept small. Bit N of stored_files is set
//     if the narinfo's Nth file is in the storage. file_sizes is set only for narinfos
//     without FileSize. mirrored is 1 if the mirrored instance has the item. Each stored file
//     was last compared with the NarHash at verified_at or later; 0 means never.
//     origin is the upstream that an item came from, see [Item.Origin], and fresh_until when
//     that must be queried again. Bit N of dropped_files is set if the narinfo's Nth file was
//     dropped, see [Item.Dropped]. It is deleted after drop_after; 0 means no pending deletion.
//   - origins has the URLs of upstreams, without passwords.
//   - narinfos has the compressed texts, by the ids of items, and the keys of their
//     references. A narinfo with withdrawn_at is hidden from clients. Its item is removed
//     after delete_after, when no client can hold the narinfo any more. One with lost_at is
//     hidden until a nar of it is stored again; see [Tx.SetLost].
//   - leftovers has the pending deletes: names of files that no row claims any more. Rows
//     are deleted first, and the process may be killed before it deletes the files.
//   - pins has the hashes of the items that pin their closures.
//   - runs and referrers are the reverse references; see references.go.
//   - recent_changes is the log that mirrors follow and that invalidates the caches of
//     other processes; see [Change].
//   - uses counts requests per item.
//   - cached_files has the cached nars of this instance; see [CachedFile].
//   - checksums has the checksums of stored and cached files; see [Checksum].
//   - The columns checksum protect texts, dictionaries and rows of cached_files against
//     damage; see [checksumOf]. The migration fills them.
//   - totals has one row, which each transaction updates.
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

	`ALTER TABLE items ADD COLUMN verified_at INTEGER NOT NULL DEFAULT 0;
	CREATE INDEX items_by_verification ON items (verified_at) WHERE stored_files != 0;
	ALTER TABLE narinfos ADD COLUMN lost_at INTEGER;
	CREATE INDEX narinfos_lost ON narinfos (lost_at) WHERE lost_at IS NOT NULL;`,

	`CREATE TABLE origins (
		id INTEGER PRIMARY KEY,
		url TEXT NOT NULL UNIQUE
	) STRICT;
	ALTER TABLE items ADD COLUMN origin INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE items ADD COLUMN fresh_until INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE items ADD COLUMN dropped_files INTEGER NOT NULL DEFAULT 0;
	ALTER TABLE items ADD COLUMN drop_after INTEGER NOT NULL DEFAULT 0;
	CREATE INDEX items_of_upstreams ON items (origin) WHERE origin != 0;
	CREATE INDEX items_fresh ON items (key, fresh_until) WHERE origin != 0;
	CREATE INDEX items_droppable ON items (drop_after) WHERE drop_after != 0;
	CREATE INDEX items_dropped ON items (key, dropped_files) WHERE dropped_files != 0;`,
}

// staleTriggers correct the writes of an older program that had the database open during
// the migration. Their columns are the ones that its statements name.
//
// A program of schema version 5 keeps the checksum of a replaced text or size, so the
// triggers clear it. Version 6 sets withdrawn_at but not delete_after: the triggers set it
// to a year later, which is safe, and [Index.BoundTimes] shortens it. If version 6 clears
// withdrawn_at, they clear delete_after as well.
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

// dropTriggers drops the staleTriggers of the main database.
const dropTriggers = `
	DROP TRIGGER main.narinfos_stale; DROP TRIGGER main.cached_files_stale;
	DROP TRIGGER main.narinfos_due; DROP TRIGGER main.cached_files_due;`

// checksumVersion is the first schema version with checksums of texts.
const checksumVersion = 6

// migrate creates the tables of a new database, and updates an older one to the newest
// schema version if the options allow it.
func migrate(ctx context.Context, conn *connection, path string, options Options, steps []string) (err error) {
	// The check needs no write lock: most databases are up to date.
	version, err := recognise(conn, path, len(steps))
	if err != nil || version == len(steps) {
		return err
	}
	if err := conn.script("BEGIN IMMEDIATE"); err != nil {
		return describe(fmt.Sprintf("database %s: lock it for creating or migrating it", path), err)
	}
	defer func() {
		if err != nil {
			_ = conn.script("ROLLBACK") // err has the cause
		}
	}()
	// Another process may have migrated it meanwhile.
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

// applyMigrations updates the database to the newest schema version, within a transaction.
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
		if version+1 == deleteAfterVersion {
			if err := c.addDeleteAfter(); err != nil {
				return describe(fmt.Sprintf("database %s: add the times after which withdrawn items may be deleted", path), err)
			}
		}
	}
	// Pragmas can't have bound parameters.
	err := c.script(fmt.Sprintf("PRAGMA application_id = %d; PRAGMA user_version = %d", ApplicationID, len(steps)))
	if err != nil {
		return describe(fmt.Sprintf("database %s: finish migrating it", path), err)
	}
	return nil
}

// recognise returns the schema version of the database, 0 if it is empty.
func recognise(conn *connection, path string, newest int) (version int, err error) {
	// Read one snapshot: another process may be creating the database.
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
	// The table narinfos of every version of the original has a column contents.
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
