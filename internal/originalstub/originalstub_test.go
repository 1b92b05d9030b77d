package originalstub

import (
	"database/sql"
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/mirror/original"
	"nar-herder/narinfo"
)

const published = "../../testdata/published"

// Items of the corpus.
const (
	greeting = "f7d5xvkf9s1mdnclid1kqndn30nim936-greeting.txt"
	plus     = "mjwaskpdj87sw34j24x3fy7bmg45jckp-gtk+-2.24.33-doc"
	greet    = "nxrz38jzshzw0q3fqi3fqimjg1zr62r9-greet-1.0"
)

// clock is a clock that tests set.
type clock struct{ time.Time }

func (c *clock) now() time.Time { return c.Time }

func start(t *testing.T) (*Server, *clock) {
	t.Helper()
	c := &clock{time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)}
	s := New(c.now)
	t.Cleanup(s.Close)
	return s, c
}

func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func textOf(t *testing.T, base string) string {
	t.Helper()
	return read(t, filepath.Join(published, base[:narinfo.PathHashLen]+".narinfo"))
}

func narOf(base string) string { return filepath.Join(published, "nar/lzip", base) }

func add(t *testing.T, s *Server, base string, files ...string) {
	t.Helper()
	if err := s.Add([]byte(textOf(t, base)), files...); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s *Server, target string, header ...string) (*http.Response, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+target, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return response, string(body)
}

func want(t *testing.T, s *Server, target string, status int, body string) {
	t.Helper()
	response, got := get(t, s, target)
	if response.StatusCode != status || status == 200 && got != body {
		t.Errorf("%s: %s %.80q, want %d %.80q", target, response.Status, got, status, body)
	}
}

func TestItems(t *testing.T) {
	t.Parallel()
	s, _ := start(t)
	add(t, s, plus, narOf(plus))
	add(t, s, greet)
	want(t, s, "/"+plus[:32]+".narinfo", 200, textOf(t, plus))
	want(t, s, "/"+plus[:32]+".narinfo/info", 200, `{"stored":true}`)
	want(t, s, "/"+greet[:32]+".narinfo", 200, textOf(t, greet))
	want(t, s, "/"+greet[:32]+".narinfo/info", 200, `{"stored":false}`)
	for _, name := range []string{plus, strings.ReplaceAll(plus, "+", "%2B")} {
		want(t, s, "/nar/lzip/"+name, 200, read(t, narOf(plus)))
	}
	response, body := get(t, s, "/nar/lzip/"+plus, "Range", "bytes=0-3")
	if response.StatusCode != 206 || body != "LZIP" || response.Header.Get("ETag") == "" {
		t.Errorf("a part: %s %q %v", response.Status, body, response.Header)
	}
	for _, target := range []string{
		"/", "/" + greeting[:32] + ".narinfo", "/" + greeting[:32] + ".narinfo/info", "/nar/lzip/" + greet, "/nar/" + plus, "/nar/zstd/" + plus,
		// Requests of this program's instances, and others.
		"/recent-changes/stream", "/stored-nars/" + plus[:32], "/latest-database-dump.zst", "/latest-database-dump", "/health", "/nix-cache-info",
	} {
		want(t, s, target, 404, "")
	}
	if count := s.Asked("/nar/"); count != 6 {
		t.Errorf("%d requests for nars", count)
	}
	if err := s.Remove("/gnu/store/" + plus); err != nil {
		t.Error(err)
	}
	want(t, s, "/"+plus[:32]+".narinfo", 404, "")
	want(t, s, "/nar/lzip/"+plus, 404, "")
	if err := s.Remove("/gnu/store/" + plus); err == nil {
		t.Error("a missing item was removed")
	}
	if err := s.Add([]byte("no narinfo")); err == nil {
		t.Error("no narinfo was added")
	}
	if err := s.Add([]byte(textOf(t, greeting)), "a", "b"); err == nil {
		t.Error("too many files are accepted")
	}
}

// changesSince returns the changes as "DATETIME CHANGE DATA". DATA of an addition is its store
// path.
func changesSince(t *testing.T, s *Server, query string) []string {
	t.Helper()
	_, body := get(t, s, "/recent-changes"+query)
	var answer struct {
		Changes []struct{ Datetime, Change, Data string } `json:"recent_changes"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Changes == nil {
		t.Fatalf("%s: %s: %v", query, body, err)
	}
	found := []string{}
	for _, c := range answer.Changes {
		if n, err := narinfo.Parse([]byte(c.Data)); err == nil {
			c.Data = n.StorePath.String()
		}
		found = append(found, c.Datetime+" "+c.Change+" "+c.Data)
	}
	return found
}

func TestChanges(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	if got := changesSince(t, s, "?since=2000-01-01+00:00:00"); len(got) != 0 {
		t.Errorf("%q", got)
	}
	add(t, s, greeting)
	add(t, s, plus)
	c.Time = c.Add(time.Second)
	if err := s.Remove("/gnu/store/" + greeting); err != nil {
		t.Fatal(err)
	}
	all := []string{
		"2026-01-02 03:04:05 addition /gnu/store/" + greeting, "2026-01-02 03:04:05 addition /gnu/store/" + plus,
		"2026-01-02 03:04:06 removal /gnu/store/" + greeting,
	}
	for query, want := range map[string][]string{
		"": all, "?since=2026-01-02%2003:04:05": all, "?since=2026-01-02+03%3A04%3A05&after=2&limit=1": all,
		"?since=2026-01-02+03:04:06": all[2:], "?since=2026-01-02+03:04:07": {},
	} {
		if got := changesSince(t, s, query); !slices.Equal(got, want) {
			t.Errorf("%s: %q, want %q", query, got, want)
		}
	}
	s.TrimChanges(c.Time)
	if got := changesSince(t, s, ""); !slices.Equal(got, all[2:]) {
		t.Errorf("trimmed: %q", got)
	}
}

// TestDump reads the dump with the reader of the original's dumps.
func TestDump(t *testing.T) {
	t.Parallel()
	s, c := start(t)
	add(t, s, plus)
	add(t, s, greet)
	if err := s.Tag("/gnu/store/"+greet, "release", "yes"); err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	if err := s.MakeDump(directory); err != nil {
		t.Fatal(err)
	}
	c.Time = c.Add(time.Hour)
	add(t, s, greeting) // the dump doesn't have it

	response, body := get(t, s, "/latest-database-dump")
	if response.StatusCode != 200 || body != read(t, filepath.Join(directory, DumpName)) || response.Header.Get("ETag") == "" || response.Header.Get("Last-Modified") == "" {
		t.Errorf("%s %v", response.Status, response.Header)
	}
	response, part := get(t, s, "/latest-database-dump", "Range", "bytes=100-199", "If-Range", response.Header.Get("ETag"))
	if response.StatusCode != 206 || part != body[100:200] {
		t.Errorf("a part: %s", response.Status)
	}
	name := filepath.Join(t.TempDir(), "downloaded.db")
	if err := os.WriteFile(name, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
	dump, err := original.Open(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer dump.Close()
	if err := dump.Check(t.Context()); err != nil {
		t.Error(err)
	}
	var texts []string
	for item, err := range dump.Items(t.Context(), original.FromStart) {
		if err != nil {
			t.Fatal(err)
		}
		texts = append(texts, string(item.Text))
		if !item.AddedAt.Equal(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)) {
			t.Errorf("added at %v", item.AddedAt)
		}
		if strings.Contains(string(item.Text), greet) && !slices.Equal(item.Tags, []original.Tag{{Key: "release", Value: "yes"}}) {
			t.Errorf("tags: %v", item.Tags)
		}
	}
	if !slices.Equal(texts, []string{textOf(t, plus), textOf(t, greet)}) {
		t.Errorf("items: %q", texts)
	}
	changes := 0
	for change, err := range dump.Changes(t.Context()) {
		if err != nil || change.Removal || change.Data != texts[changes] {
			t.Errorf("change: %+v, %v", change, err)
		}
		changes++
	}
	if changes != 2 {
		t.Errorf("%d changes", changes)
	}

	database, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	defer database.Close()
	var tables string
	if err := database.QueryRow("SELECT group_concat(name, ' ') FROM (SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name)").Scan(&tables); err != nil {
		t.Fatal(err)
	}
	if tables != "cached_narinfo_files narinfo_files narinfo_references narinfo_tags narinfos recent_changes tags" {
		t.Errorf("tables: %s", tables)
	}
	var references, files int
	if err := database.QueryRow("SELECT (SELECT count(*) FROM narinfo_references), (SELECT count(*) FROM narinfo_files WHERE url LIKE '/nar/lzip/%')").Scan(&references, &files); err != nil {
		t.Fatal(err)
	}
	if references == 0 || files != 2 {
		t.Errorf("%d references, %d files", references, files)
	}

	// Another item replaces it.
	if err := s.MakeDump(directory); err != nil {
		t.Fatal(err)
	}
	if _, again := get(t, s, "/latest-database-dump"); again == body {
		t.Error("the old dump is still served")
	}
	if err := s.MakeDump(filepath.Join(directory, "missing")); err == nil {
		t.Error("a dump in a missing directory succeeds")
	}
}
