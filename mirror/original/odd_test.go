package original

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// TestOdd: databases that differ from the original's schema.
func TestOdd(t *testing.T) {
	t.Parallel()
	full := []string{
		"CREATE TABLE narinfos (id INTEGER PRIMARY KEY, store_path TEXT, contents, added_at)",
		"CREATE TABLE tags (id INTEGER PRIMARY KEY, key, value)", "CREATE TABLE narinfo_tags (narinfo_id, tag_id)",
		"CREATE TABLE cached_narinfo_files (id INTEGER PRIMARY KEY, narinfo_id, size, compression)",
		"CREATE TABLE recent_changes (id INTEGER PRIMARY KEY, datetime, change, data)",
	}
	with := func(more ...string) []string { return append(append([]string{}, full...), more...) }
	at := time.Date(2024, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, test := range map[string]struct {
		sql     []string
		items   []Item
		changes []Change
		odd     []string
	}{
		"contents alone": {
			sql:   []string{"CREATE TABLE narinfos (contents)", "INSERT INTO narinfos VALUES ('a'), (x'6200ff')"},
			items: []Item{{Text: []byte("a"), ID: 1}, {Text: []byte("b\x00\xff"), ID: 2}},
		},
		"no rows": {sql: full},
		"names in other letters": {
			sql:   []string{"CREATE TABLE NarInfos (ID INTEGER PRIMARY KEY, Contents TEXT, Added_At TEXT)", "INSERT INTO narinfos VALUES (7, 'a', '2024-01-02 03:04:05')"},
			items: []Item{{Text: []byte("a"), ID: 7, AddedAt: at}},
		},
		"columns of declared types": {
			sql: []string{"CREATE TABLE narinfos (id INTEGER PRIMARY KEY, contents BOOLEAN, added_at DATETIME)",
				"INSERT INTO narinfos VALUES (1, 'a', '2024-01-02 03:04:05'), (2, 'b', 1704164645)"},
			items: []Item{{Text: []byte("a"), ID: 1, AddedAt: at}, {Text: []byte("b"), ID: 2, AddedAt: at}},
		},
		"values of wrong types": {
			sql: with("INSERT INTO narinfos (id, contents, added_at) VALUES (-3, 'a', NULL), (1, NULL, 1), (2, 3, 1), (4, 1.5, 'x'), (5, x'', 1), (6, '', 'x'), (7, 'b', x'3030')",
				"INSERT INTO recent_changes VALUES (1, NULL, 'addition', 'x'), (2, '2024-01-02 03:04:05', NULL, 'x'), (3, '2024-01-02 03:04:05', 'addition', NULL),"+
					"(4, '2024-01-02 03:04:05', 'explosion', 'x'), (5, 1704164645, 'removal', x'78'), (6, '2024-01-02T03:04:05Z', 'addition', 5)"),
			items:   []Item{{Text: []byte("a"), ID: -3}, {Text: []byte("b"), ID: 7, AddedAt: time.Unix(0, 0).UTC()}},
			changes: []Change{{At: at, Removal: true, Data: "x", ID: 5}},
			odd:     []string{"narinfos 1", "narinfos 2", "narinfos 4", "narinfos 5", "narinfos 6", "recent_changes 1", "recent_changes 2", "recent_changes 3", "recent_changes 4", "recent_changes 6"},
		},
		"too large": {
			sql: with(fmt.Sprintf("INSERT INTO narinfos (id, contents) VALUES (1, zeroblob(%d)), (2, zeroblob(%d)), (3, 'a'), (4, zeroblob(%d))", narinfo.MaxSize+1, 300<<20, 2*narinfo.MaxSize+1),
				"INSERT INTO tags VALUES (1, 'k', 'v'), (2, 'k', zeroblob(100000)), (3, 'k', NULL), (4, 5, x'78')", "INSERT INTO narinfo_tags VALUES (3, 1), (3, 2), (3, 3), (3, 4), (3, 99), (99, 1), (NULL, NULL), ('x', 'y')",
				"INSERT INTO recent_changes VALUES (1, '2024-01-02', 'addition', zeroblob(300000000))"),
			items: []Item{{Text: []byte("a"), ID: 3, Tags: []Tag{{"k", "v"}, {"5", "x"}}}},
			odd:   []string{"narinfo_tags 3", "narinfo_tags 3", "narinfos 1", "narinfos 2", "narinfos 4", "recent_changes 1"},
		},
		"cached files": {
			sql: with("INSERT INTO narinfos (id, contents) VALUES (1, 'a'), (2, 'b')",
				"INSERT INTO cached_narinfo_files VALUES (1, 2, 5, 'zstd'), (2, 2, NULL, 'gzip'), (3, 2, -7, 'lzip'), (4, 1, 'many', 'x'), (5, 1, 5, NULL), (6, 9, 1, 'a'), (7, 1, 1, '')"),
			items: []Item{{Text: []byte("a"), ID: 1, Cached: []Cached{{"x", 0}}}, {Text: []byte("b"), ID: 2, Cached: []Cached{{"zstd", 5}, {"gzip", -1}, {"lzip", -1}}}},
			odd:   []string{"cached_narinfo_files 1", "cached_narinfo_files 1"},
		},
		"ids that are no row ids": {
			sql: []string{"CREATE TABLE narinfos (id TEXT, contents TEXT)", "INSERT INTO narinfos VALUES ('x', 'a'), ('y', 'b')",
				"CREATE TABLE tags (id, key, value)", "CREATE TABLE narinfo_tags (narinfo_id, tag_id)", "INSERT INTO tags VALUES ('t', 'k', 'v')", "INSERT INTO narinfo_tags VALUES ('y', 't')"},
			items: []Item{{Text: []byte("a"), ID: 1}, {Text: []byte("b"), ID: 2, Tags: []Tag{{"k", "v"}}}},
		},
		"UTF-16": {
			sql:   []string{"PRAGMA encoding = 'UTF-16le'", "CREATE TABLE narinfos (contents TEXT)", "INSERT INTO narinfos VALUES ('grüße')"},
			items: []Item{{Text: []byte("grüße"), ID: 1}},
		},
		"tables that are views": {
			sql: []string{"CREATE TABLE narinfos (id INTEGER PRIMARY KEY, contents)", "INSERT INTO narinfos VALUES (1, 'a')", "CREATE TABLE tags (id, key, value)",
				"CREATE VIEW narinfo_tags AS WITH RECURSIVE r(narinfo_id, tag_id) AS (SELECT 1, 1 UNION ALL SELECT narinfo_id, tag_id FROM r) SELECT * FROM r"},
			items: []Item{{Text: []byte("a"), ID: 1}},
		},
		"computed": {
			sql:   []string{"CREATE TABLE narinfos (id INTEGER PRIMARY KEY, contents, added_at AS (zeroblob(900000000)))", "INSERT INTO narinfos VALUES (1, 'a')"},
			items: []Item{{Text: []byte("a"), ID: 1}},
		},
		"too many tags": {
			sql: with("INSERT INTO narinfos (id, contents) VALUES (1, 'a'), (2, 'b')", "INSERT INTO tags VALUES (1, 'k', 'v')",
				"WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3000) INSERT INTO narinfo_tags SELECT 1, 1 FROM r", "INSERT INTO narinfo_tags VALUES (2, 1)"),
			items: []Item{{Text: []byte("a"), ID: 1, Tags: make([]Tag, maxTags)}, {Text: []byte("b"), ID: 2, Tags: []Tag{{"k", "v"}}}},
			odd:   []string{"narinfo_tags 1"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "original.db")
			execute(t, path, test.sql...)
			d := open(t, path)
			for i := range test.items {
				if tags := test.items[i].Tags; len(tags) == maxTags {
					for j := range tags {
						tags[j] = Tag{"k", "v"}
					}
				}
			}
			items, changes, odd := all(t, d)
			if !reflect.DeepEqual(items, test.items) {
				t.Errorf("items: %v, want %v", items, test.items)
			}
			if !reflect.DeepEqual(changes, test.changes) || !reflect.DeepEqual(odd, test.odd) {
				t.Errorf("changes: %v, odd %q, want %v and %q", changes, odd, test.changes, test.odd)
			}
			_, err1 := d.LastAdded(t.Context())
			_, err2 := d.NewestChange(t.Context())
			info, err3 := d.Info(t.Context())
			if err := errors.Join(err1, err2, err3); err != nil || len(info) > 0 {
				t.Errorf("%v, %v", info, err)
			}
			if err := d.Check(t.Context()); (err == nil) != (name != "no rows") {
				t.Errorf("check: %v", err)
			}
		})
	}
}

// TestPages: memory is bounded by pages, and no page ends early or repeats rows.
func TestPages(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "original.db")
	execute(t, path, "CREATE TABLE narinfos (contents)",
		"WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n <= 1200) INSERT INTO narinfos SELECT CAST(n AS TEXT) FROM r",
		"WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 40) INSERT INTO narinfos SELECT zeroblob(1000000) FROM r")
	d := open(t, path)
	page, last, err := d.page(t.Context(), d.conn, 1201)
	if err != nil || len(page) != 5 || last != 1206 {
		t.Errorf("a page of large rows: %d to %d, %v", len(page), last, err)
	}
	next := int64(0)
	for item, err := range d.Items(t.Context(), FromStart) {
		if next++; err != nil || item.ID != next {
			t.Fatalf("row %d where %d was to come, %v", item.ID, next, err)
		}
	}
	if next != 1241 {
		t.Errorf("%d rows", next)
	}
}

func TestNotOriginal(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		make func(t *testing.T, path string)
		want error
	}{
		"missing":     {func(*testing.T, string) {}, fs.ErrNotExist},
		"empty":       {func(t *testing.T, path string) { must(t, os.WriteFile(path, nil, 0o644)) }, ErrNotDatabase},
		"short":       {func(t *testing.T, path string) { must(t, os.WriteFile(path, []byte("SQLite format 3\x00"), 0o644)) }, ErrNotDatabase},
		"garbage":     {func(t *testing.T, path string) { must(t, os.WriteFile(path, make([]byte, 9000), 0o644)) }, ErrNotDatabase},
		"pipe":        {func(t *testing.T, path string) { must(t, syscall.Mkfifo(path, 0o644)) }, ErrNotDatabase},
		"directory":   {func(t *testing.T, path string) { must(t, os.Mkdir(path, 0o755)) }, ErrNotDatabase},
		"other":       {func(t *testing.T, path string) { execute(t, path, "CREATE TABLE cookies (id)") }, ErrNotOriginal},
		"no contents": {func(t *testing.T, path string) { execute(t, path, "CREATE TABLE narinfos (id, text)") }, ErrNotOriginal},
		"view": {func(t *testing.T, path string) {
			execute(t, path, "CREATE VIEW narinfos AS WITH RECURSIVE r(contents) AS (SELECT 1 UNION ALL SELECT contents FROM r) SELECT contents FROM r")
		}, ErrNotOriginal},
		"virtual": {func(t *testing.T, path string) {
			execute(t, path, "CREATE VIRTUAL TABLE narinfos USING fts5(contents)")
		}, ErrNotOriginal},
		"no row ids": {func(t *testing.T, path string) {
			execute(t, path, "CREATE TABLE narinfos (id TEXT PRIMARY KEY, contents TEXT) WITHOUT ROWID")
		}, ErrNotOriginal},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "original.db")
			test.make(t, path)
			for _, open := range []func(context.Context, string) (*Database, error){Open, OpenLocked} {
				_, err := open(t.Context(), path)
				if !errors.Is(err, test.want) || !strings.Contains(err.Error(), path) {
					t.Errorf("%v, want %v", err, test.want)
				}
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestDamaged: if any page is damaged or missing, reading fails or returns the other rows,
// and a check always fails.
func TestDamaged(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dump.db")
	items, _ := write(t, path)
	whole, err := os.ReadFile(path)
	must(t, err)
	read := func(name string, content []byte) {
		must(t, os.WriteFile(path, content, 0o644))
		d, err := Open(t.Context(), path)
		if err != nil {
			if !errors.Is(err, ErrNotDatabase) && !errors.Is(err, ErrNotOriginal) {
				t.Errorf("%s: %v", name, err)
			}
			return
		}
		defer d.Close()
		got := 0
		for item, err := range d.Items(t.Context(), FromStart) {
			if err != nil {
				if !strings.Contains(err.Error(), "row") {
					t.Errorf("%s: the error does not say where: %v", name, err)
				}
				continue
			}
			if got++; item.ID > int64(len(items)) {
				t.Errorf("%s: item %d", name, item.ID)
			}
		}
		if err := d.Check(t.Context()); err == nil {
			t.Errorf("%s: a check finds nothing; %d of %d items", name, got, len(items))
		}
	}
	pages := len(whole) / writerPage
	for page := range pages {
		damaged := append([]byte{}, whole...)
		from := page * writerPage
		if page == 0 {
			from = 100 // after the header
		}
		for i := from; i < (page+1)*writerPage; i++ {
			damaged[i] = 0x55
		}
		read(fmt.Sprintf("page %d of %d damaged", page+1, pages), damaged)
		if page > 0 {
			read(fmt.Sprintf("cut off before page %d of %d", page+1, pages), whole[:page*writerPage])
		}
	}
}

func TestContextEnds(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dump.db")
	write(t, path)
	d := open(t, path)
	ctx, end := context.WithCancel(t.Context())
	end()
	_, err1 := d.Count(ctx)
	_, err2 := d.Info(ctx)
	var err3, err4 error
	for _, err3 = range d.Items(ctx, FromStart) {
	}
	for _, err4 = range d.Changes(ctx) {
	}
	for i, err := range []error{err1, err2, err3, err4, d.Check(ctx)} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%d: %v", i, err)
		}
	}
	// The database is usable afterwards.
	if err := d.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

// FuzzParseTime: a parsed time survives formatting and parsing.
func FuzzParseTime(f *testing.F) {
	for _, text := range []string{"2026-01-01 00:00:00", "2026-01-01T00:00:00.5+02:00", "1700000000", "1.7e12", "-1", "NaN", "1e300", "9999-12-31 23:59:59 -0700", "0001-01-01", ""} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		at, ok := parseTime(text)
		if !ok {
			return
		}
		if again, ok := parseTime(at.Format(timeLayout)); !ok || !again.Equal(at) || at.Location() != time.UTC {
			t.Fatalf("%q is %s, which is %s", text, at, again)
		}
	})
}
