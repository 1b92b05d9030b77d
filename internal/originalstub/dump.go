package originalstub

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	_ "modernc.org/sqlite" // the driver "sqlite"
)

// DumpName is the name of MakeDump's file.
const DumpName = "nar_herder_dump.db"

// schema duplicates that of package original on purpose, so that tests find mistakes there.
const schema = `
CREATE TABLE narinfos (id INTEGER PRIMARY KEY ASC, store_path TEXT NOT NULL, nar_hash TEXT NOT NULL, nar_size INTEGER NOT NULL,
	deriver TEXT, system TEXT, contents NOT NULL, added_at TEXT);
CREATE UNIQUE INDEX narinfos_store_hash ON narinfos (substr(store_path, 12, 32));
CREATE TABLE narinfo_files (narinfo_id INTEGER NOT NULL, size INTEGER NOT NULL, compression TEXT, url TEXT NOT NULL);
CREATE TABLE narinfo_references (narinfo_id INTEGER NOT NULL, store_path TEXT NOT NULL);
CREATE TABLE tags (id INTEGER PRIMARY KEY ASC, key TEXT NOT NULL, value TEXT NOT NULL);
CREATE TABLE narinfo_tags (narinfo_id INTEGER NOT NULL, tag_id INTEGER NOT NULL);
CREATE TABLE recent_changes (id INTEGER PRIMARY KEY ASC, datetime TEXT NOT NULL, change TEXT NOT NULL, data TEXT NOT NULL);
CREATE TABLE cached_narinfo_files (id INTEGER PRIMARY KEY ASC, narinfo_id INTEGER NOT NULL, size INTEGER NOT NULL, compression TEXT);
`

// MakeDump writes a copy of the database to the directory, and serves it.
func (s *Server) MakeDump(directory string) (err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := filepath.Join(directory, DumpName)
	temporary := name + ".tmp"
	if err := os.RemoveAll(temporary); err != nil {
		return err
	}
	database, err := sql.Open("sqlite", temporary)
	if err != nil {
		return fmt.Errorf("make a dump: %w", err)
	}
	defer func() { err = errors.Join(err, database.Close()) }()
	tx, err := database.Begin()
	if err != nil {
		return fmt.Errorf("make a dump: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
		}
	}()
	if err := s.fill(tx); err != nil {
		return fmt.Errorf("make a dump: %w", err)
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("make a dump: %w", err)
	}
	if err := database.Close(); err != nil {
		return fmt.Errorf("make a dump: %w", err)
	}
	if err := os.Rename(temporary, name); err != nil {
		return err
	}
	s.dump = name
	return nil
}

// fill writes all rows.
func (s *Server) fill(tx *sql.Tx) (err error) {
	exec := func(statement string, args ...any) {
		if err == nil {
			_, err = tx.Exec(statement, args...)
		}
	}
	exec(schema)
	tags := make(map[[2]string]int)
	for _, item := range s.items {
		n := item.narinfo
		exec("INSERT INTO narinfos VALUES (?, ?, ?, ?, ?, ?, ?, ?)", item.id, n.StorePath.String(), n.NarHash.String(), max(n.NarSize, 0),
			textOrNull(n.Deriver), textOrNull(n.System), string(n.Text), item.addedAt)
		for _, file := range n.Files {
			exec("INSERT INTO narinfo_files VALUES (?, ?, ?, ?)", item.id, max(file.Size, 0), file.Compression, "/"+strings.TrimPrefix(file.URL, "/"))
		}
		for _, reference := range n.References {
			exec("INSERT INTO narinfo_references VALUES (?, ?)", item.id, reference.String())
		}
		for _, tag := range item.tags {
			id, known := tags[tag]
			if !known {
				id = len(tags) + 1
				tags[tag] = id
				exec("INSERT INTO tags VALUES (?, ?, ?)", id, tag[0], tag[1])
			}
			exec("INSERT INTO narinfo_tags VALUES (?, ?)", item.id, id)
		}
	}
	for _, c := range s.changes {
		exec("INSERT INTO recent_changes VALUES (?, ?, ?, ?)", c.id, c.Datetime, c.Change, c.Data)
	}
	return err
}

func textOrNull(s string) any {
	if s == "" {
		return nil
	}
	return s
}
