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
	"testing"
	"time"

	"nar-herder/narinfo"
)

var testTime = time.Date(2024, 2, 29, 23, 59, 58, 0, time.UTC)

// write makes a database of the corpus, and returns the items.
func write(t *testing.T, path string) (items []Item, changes []Change) {
	t.Helper()
	w, err := Create(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	seen := make(map[narinfo.PathHash]bool)
	for _, text := range corpus(t) {
		n, err := narinfo.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if seen[n.StorePath.Hash] {
			continue // the same items in other compressions
		}
		seen[n.StorePath.Hash] = true
		i := len(items)
		item := Item{Text: text, AddedAt: testTime.Add(time.Duration(i) * time.Hour), ID: int64(i + 1)}
		switch i % 4 {
		case 1:
			item.Tags = []Tag{{"release", "yes"}, {"branch", fmt.Sprint("b", i)}}
		case 2:
			item.Cached = []Cached{{"zstd", int64(1000 * i)}, {"gzip", -1}}
		case 3:
			item.AddedAt = time.Time{}
		}
		if err := w.Add(item); err != nil {
			t.Fatal(err)
		}
		items = append(items, item)
		change := Change{At: item.AddedAt, Data: string(text), ID: int64(i + 1)}
		if i%3 == 0 {
			change.Removal, change.Data = true, n.StorePath.String()
		}
		if change.At.IsZero() {
			change.At = testTime
		}
		if err := w.AddChange(change); err != nil {
			t.Fatal(err)
		}
		changes = append(changes, change)
	}
	if err := errors.Join(w.SetInfo("instance", "old"), w.SetInfo("instance", "abc"), w.SetInfo("cursor", "")); err != nil {
		t.Fatal(err)
	}
	if err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	return items, changes
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dump with?odd%23 name.db")
	items, changes := write(t, path)
	if names, err := os.ReadDir(filepath.Dir(path)); err != nil || len(names) != 1 {
		t.Errorf("beside it: %v, %v", names, err)
	}
	d := open(t, path)
	if err := d.Check(t.Context()); err != nil {
		t.Error(err)
	}
	gotItems, gotChanges, odd := all(t, d)
	if !reflect.DeepEqual(gotItems, items) || len(odd) > 0 {
		t.Errorf("items: got %v, odd %q, want %v", gotItems, odd, items)
	}
	if !reflect.DeepEqual(gotChanges, changes) {
		t.Errorf("changes: got %v, want %v", gotChanges, changes)
	}
	if count, err := d.Count(t.Context()); err != nil || count != int64(len(items)) {
		t.Errorf("count: %d, %v, want %d", count, err, len(items))
	}
	if count, err := d.CountUpTo(t.Context(), 3); err != nil || count != 3 {
		t.Errorf("count up to 3: %d, %v", count, err)
	}
	if info, err := d.Info(t.Context()); err != nil || !reflect.DeepEqual(info, map[string]string{"instance": "abc", "cursor": ""}) {
		t.Errorf("info: %v, %v", info, err)
	}
	last, newest := time.Time{}, time.Time{}
	for i := range items {
		if items[i].AddedAt.After(last) {
			last = items[i].AddedAt
		}
		if changes[i].At.After(newest) {
			newest = changes[i].At
		}
	}
	if got, err := d.LastAdded(t.Context()); err != nil || got != last {
		t.Errorf("last added: %v, %v, want %v", got, err, last)
	}
	if got, err := d.NewestChange(t.Context()); err != nil || got != newest {
		t.Errorf("newest change: %v, %v, want %v", got, err, newest)
	}
	var after []int64
	for item, err := range d.Items(t.Context(), 2) {
		if err != nil {
			t.Fatal(err)
		}
		if after = append(after, item.ID); len(after) == 2 {
			break
		}
	}
	if !reflect.DeepEqual(after, []int64{3, 4}) {
		t.Errorf("after 2: %v", after)
	}
}

// TestSchema: another build of SQLite reads the database.
func TestSchema(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dump.db")
	items, changes := write(t, path)
	for query, want := range map[string]string{
		"PRAGMA integrity_check":   "ok",
		"PRAGMA foreign_key_check": "",
		"PRAGMA journal_mode":      "delete",
		"SELECT group_concat(name, ' ') FROM (SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name)":                                                                 "cached_narinfo_files nar_herder_dump narinfo_files narinfo_references narinfo_tags narinfos recent_changes tags",
		"SELECT group_concat(name, ' ') FROM pragma_table_info('narinfos')":                                                                                                       "id store_path nar_hash nar_size deriver system contents added_at",
		"SELECT group_concat(name, ' ') FROM pragma_table_info('narinfo_files')":                                                                                                  "narinfo_id size compression url",
		"SELECT group_concat(name, ' ') FROM pragma_table_info('narinfo_references')":                                                                                             "narinfo_id store_path",
		"SELECT group_concat(name, ' ') FROM pragma_table_info('recent_changes')":                                                                                                 "id datetime change data",
		"SELECT group_concat(name, ' ') FROM pragma_table_info('cached_narinfo_files')":                                                                                           "id narinfo_id size compression",
		"SELECT count(*), count(DISTINCT typeof(contents)), max(typeof(contents)) FROM narinfos":                                                                                  fmt.Sprintf("%d|1|text", len(items)),
		"SELECT count(*) FROM recent_changes":                                                                                                                                     fmt.Sprint(len(changes)),
		"SELECT url, size, compression FROM narinfo_files WHERE url LIKE '%greet-1.0' AND url LIKE '%/nxrz%'":                                                                     "/nar/lzip/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0|314|lzip",
		"SELECT count(*) FROM narinfo_files WHERE url NOT LIKE '/nar/%'":                                                                                                          "0",
		"SELECT r.store_path FROM narinfo_references r JOIN narinfos n ON n.id = r.narinfo_id WHERE substr(n.store_path, 12, 32) = 'nxrz38jzshzw0q3fqi3fqimjg1zr62r9' ORDER BY 1": "/gnu/store/f7d5xvkf9s1mdnclid1kqndn30nim936-greeting.txt\n/gnu/store/j0kmdkzywjvv7224iwrm7xdc2fx2y8c9-libgreet-1.0\n/gnu/store/nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0",
		"SELECT count(*) FROM narinfos WHERE nar_hash NOT LIKE 'sha256:%' OR length(nar_hash) != 59 OR nar_size <= 0":                                                             "0",
		"SELECT min(added_at) FROM narinfos":                                                                                                                                      "2024-02-29 23:59:58",
		"SELECT group_concat(DISTINCT key) FROM tags":                                                                                                                             "release,branch",
		"SELECT count(*) FROM tags WHERE key = 'release'":                                                                                                                         "1",
		"SELECT group_concat(DISTINCT change) FROM recent_changes":                                                                                                                "removal,addition",
		"SELECT data FROM recent_changes WHERE change = 'removal' AND data NOT LIKE '/g%'":                                                                                        "",
	} {
		if got := ask(t, path, query); got != want {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	for _, query := range []string{
		"SELECT 1 FROM narinfos WHERE substr(store_path, 12, 32) = 'x'",
		"SELECT 1 FROM narinfo_references WHERE narinfo_id = 1", "SELECT 1 FROM narinfo_files WHERE narinfo_id = 1",
		"SELECT 1 FROM narinfo_tags WHERE narinfo_id = 1", "SELECT 1 FROM cached_narinfo_files WHERE narinfo_id = 1",
		"SELECT 1 FROM recent_changes WHERE datetime >= 'x'", "SELECT 1 FROM tags WHERE key = 'x' AND value = 'y'",
	} {
		if plan := ask(t, path, "EXPLAIN QUERY PLAN "+query); !strings.Contains(plan, "SEARCH") {
			t.Errorf("%s reads the whole table: %s", query, plan)
		}
	}
}

// TestRepeated: of items with the same hash, the last one counts, with its own tags and
// files only.
func TestRepeated(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dump.db")
	w, err := Create(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	other := generated(2)
	for i := range 3 {
		item := Item{Text: append(generated(1), fmt.Sprintf("X: %d\n", i)...), Tags: []Tag{{"number", fmt.Sprint(i)}}, Cached: []Cached{{"zstd", int64(i)}}}
		if err := w.Add(item); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			if err := w.Add(Item{Text: other}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := open(t, path)
	if err := d.Check(t.Context()); err != nil {
		t.Error(err)
	}
	items, _, odd := all(t, d)
	want := []Item{
		{Text: other, ID: 3},
		{Text: append(generated(1), "X: 2\n"...), ID: 4, Tags: []Tag{{"number", "2"}}, Cached: []Cached{{"zstd", 2}}},
	}
	if !reflect.DeepEqual(items, want) || len(odd) > 0 {
		t.Errorf("%v, %q", items, odd)
	}
	for query, want := range map[string]string{
		"PRAGMA integrity_check": "ok", "PRAGMA foreign_key_check": "",
		"SELECT count(*) FROM narinfo_references": "20", "SELECT count(*) FROM narinfo_files": "4",
	} {
		if got := ask(t, path, query); got != want {
			t.Errorf("%s: %s, want %s", query, got, want)
		}
	}
}

func TestWriterRefuses(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "dump.db")
	if err := os.WriteFile(path, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(t.Context(), path); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), path) {
		t.Errorf("over a file: %v", err)
	}
	if text, err := os.ReadFile(path); err != nil || string(text) != "precious" {
		t.Errorf("the file: %q, %v", text, err)
	}
	if _, err := Create(t.Context(), filepath.Join(path, "x")); err == nil {
		t.Error("below a file")
	}
	path += "2"
	w, err := Create(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	var syntax *narinfo.SyntaxError
	if err := w.Add(Item{Text: []byte("StorePath: nonsense\n")}); !errors.As(err, &syntax) {
		t.Errorf("nonsense: %v", err)
	}
	if err := w.Add(Item{Text: make([]byte, narinfo.MaxSize+1)}); !errors.Is(err, narinfo.ErrTooLarge) {
		t.Errorf("too large: %v", err)
	}
	if err := w.Add(Item{Text: generated(1)}); err != nil {
		t.Errorf("after nonsense: %v", err)
	}
	if err := errors.Join(w.Abort(), w.Abort()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("aborted, and there: %v", err)
	}
	// If the context has ended, no file is left either.
	if w, err = Create(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	if err := w.Add(Item{Text: generated(1)}); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(t.Context())
	end()
	if err := w.Finish(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("finish: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("not finished, and there: %v", err)
	}
}

func TestURLPath(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"nar/lzip/x": "/nar/lzip/x", "/nar/x%2By": "/nar/x%2By", "https://example.org/a/nar/x": "/a/nar/x",
		"nar/a://b": "/nar/a://b", "https://example.org": "/",
	} {
		if got := urlPath(url); got != want {
			t.Errorf("%s: %s, want %s", url, got, want)
		}
	}
}

func TestParseTime(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"2024-02-29 23:59:58": "2024-02-29 23:59:58", "2024-02-29T23:59:58": "2024-02-29 23:59:58", " 2024-02-29 23:59:58 ": "2024-02-29 23:59:58",
		"2024-02-29 23:59:58.999": "2024-02-29 23:59:58", "2024-02-29T23:59:58.5Z": "2024-02-29 23:59:58",
		"2024-02-29T23:59:58+02:00": "2024-02-29 21:59:58", "2024-02-29 23:59:58 -0100": "2024-03-01 00:59:58",
		"2024-02-29": "2024-02-29 00:00:00", "1709251198": "2024-02-29 23:59:58", "1709251198.7": "2024-02-29 23:59:58",
		"1709251198700": "2024-02-29 23:59:58", "0": "1970-01-01 00:00:00", "-1.5": "1969-12-31 23:59:58",
		"": "", "yesterday": "", "2024-02-30 00:00:00": "", "NaN": "", "Inf": "", "1e300": "", "0000-01-01 00:00:00": "", "9999-12-31T23:59:59-10:00": "",
	} {
		got, ok := parseTime(text)
		if ok != (want != "") || ok && (got.Format(time.DateTime) != want || got.Location() != time.UTC) {
			t.Errorf("%q: %v, %v, want %s", text, got, ok, want)
		}
	}
}
