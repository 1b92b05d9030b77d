package mirror

import (
	"context"
	"database/sql"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nar-herder/internal/hostile"
	"nar-herder/internal/testlog"
	"nar-herder/mirror/bootstrap"
	"nar-herder/mirror/cursor"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// crossings are rows beside the texts that no other instance may set.
const crossings = `
	INSERT INTO leftovers VALUES ('docs/precious.txt'), ('secret.key'), ('nar/none/notes');
	INSERT INTO pins VALUES (x'0000000000000000000000000000000000000001', 1);
	INSERT INTO settings VALUES ('storage.front_end_of', 'x'), ('mirror.accept', '2026-11-26T00:00:00Z'), ('mirror.place', '{"instance":"x","position":9}'),
		('storage.limit', '1'), ('instance', 'stolen'), ('replacing.docs/precious.txt', 'x');
	UPDATE items SET stored_files = 1, stored_size = 120, mirrored = 0;
	UPDATE totals SET stored_nars = 7, stored_size = 7;
	INSERT INTO tags VALUES (1, 'key', 'value');
	INSERT INTO item_tags SELECT id, 1 FROM items;
	INSERT INTO uses SELECT id, 9, 9 FROM items;
	INSERT INTO cached_files (item, type, size, last_used, withdrawn_at) SELECT id, 'zstd', 9, 9, NULL FROM items;
	INSERT INTO checksums SELECT id, 'x', 9, 9, x'00' FROM items;
	INSERT INTO recent_changes (at, kind, hash, store_path) SELECT 1, 2, hash, '/gnu/store/x' FROM narinfos;
	CREATE TRIGGER t AFTER INSERT ON settings BEGIN INSERT INTO leftovers VALUES ('docs/precious.txt'); END;`

// TestHostileIndex: only texts and their times are taken from a source's index or dump,
// whatever else these contain.
func TestHostileIndex(t *testing.T) {
	t.Parallel()
	texts := hostileTexts()
	dump := filepath.Join(t.TempDir(), "dump.db")
	if err := os.WriteFile(dump, dumpWith(t, hostile.Instance, texts...), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, publish := range map[string]func(*hostile.Source){
		"index": func(s *hostile.Source) { s.Publish(peer.IndexPath, copyWith(t, crossings, texts...)) },
		"dump": func(s *hostile.Source) {
			s.Publish(peer.DumpPath, changed(t, dump, `
				CREATE TABLE leftovers (name TEXT PRIMARY KEY); INSERT INTO leftovers VALUES ('docs/precious.txt');
				CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT); INSERT INTO settings VALUES ('storage.limit', '1');
				INSERT INTO tags VALUES (1, 'key', 'value'); INSERT INTO narinfo_tags SELECT id, 1 FROM narinfos;
				INSERT INTO cached_narinfo_files SELECT id, id, 9, 'zstd' FROM narinfos;
				CREATE VIEW v AS SELECT * FROM narinfos; CREATE TRIGGER t AFTER INSERT ON narinfos BEGIN DELETE FROM narinfos; END;`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := hostile.New()
			t.Cleanup(source.Close)
			source.Nar([]byte(evil))
			publish(source)
			x := beginWith(t, source)
			wantNothingElse(t, x)
			v := victimWith(t, x, source.URL)
			if at, err := cursor.Read(t.Context(), x); err != nil || at.Instance == "" || at.Instance == "x" {
				t.Errorf("it follows %+v, %v", at, err)
			}
			v.wantUnharmed(t)
		})
	}
}

// beginWith starts from a hostile source, and opens the result.
func beginWith(t *testing.T, source *hostile.Source) *index.Index {
	t.Helper()
	base, err := url.Parse(source.URL)
	if err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(t.TempDir(), "index.db")
	log := new(testlog.Buffer)
	b := bootstrap.New(database, peer.New(base, peer.Self{}), slog.New(slog.NewTextHandler(log, nil)))
	b.FirstPause = time.Millisecond
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	if err := b.Run(ctx); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return openBuilt(t, database)
}

func openBuilt(t testing.TB, database string) *index.Index {
	t.Helper()
	x, err := index.Open(t.Context(), database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// wantNothingElse asserts that the index has the valid item only.
func wantNothingElse(t *testing.T, x *index.Index) {
	t.Helper()
	db, err := sql.Open("sqlite", x.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for query, want := range map[string]string{
		"SELECT count(*) FROM items WHERE stored_files = 0 AND stored_size = 0 AND mirrored = 1": "1",
		"SELECT count(*) FROM items": "1",
		"SELECT items || ' ' || stored_nars || ' ' || stored_size FROM totals":                                                                                              "1 0 0",
		"SELECT group_concat(key) FROM (SELECT key FROM settings ORDER BY key)":                                                                                             "instance,mirror.place",
		"SELECT count(*) FROM sqlite_schema WHERE type IN ('trigger', 'view') AND name NOT IN ('narinfos_stale', 'cached_files_stale', 'narinfos_due', 'cached_files_due')": "0",
		"SELECT count(*) FROM leftovers":      "0",
		"SELECT count(*) FROM pins":           "0",
		"SELECT count(*) FROM tags":           "0",
		"SELECT count(*) FROM uses":           "0",
		"SELECT count(*) FROM cached_files":   "0",
		"SELECT count(*) FROM checksums":      "0",
		"SELECT count(*) FROM recent_changes": "0",
		"PRAGMA integrity_check":              "ok",
	} {
		var got string
		if err := db.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", query, got, err, want)
		}
	}
	if x.Instance() == "stolen" {
		t.Error("the instance has the name that it was given")
	}
}
