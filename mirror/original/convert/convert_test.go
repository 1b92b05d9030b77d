package convert

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

var testTime = time.Date(2023, 4, 5, 6, 7, 8, 0, time.UTC)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// hashOf returns the path hash of the Nth generated item.
func hashOf(n int) (hash narinfo.PathHash) {
	// Multiply, so that hashes are far apart, like real ones.
	x := uint64(n+1) * 0x9e3779b97f4a7c15
	for i := range hash {
		hash[i] = byte(x >> (8 * (i % 8)))
	}
	return hash
}

func pathOf(n int) string {
	return fmt.Sprintf("/gnu/store/%s-item-%d", hashOf(n), n)
}

// textOf returns its narinfo with two files, one of which has a FileSize if sized.
func textOf(n int, sized bool) []byte {
	base := filepath.Base(pathOf(n))
	text := fmt.Sprintf("StorePath: %s\nNarHash: %s\nNarSize: %d\nReferences: %s %s\n",
		pathOf(n), narinfo.NarHash{byte(n)}, 1000+n, base, filepath.Base(pathOf(n/2)))
	for i, compression := range []string{"lzip", "gzip"} {
		text += fmt.Sprintf("URL: nar/%s/%s\nCompression: %[1]s\n", compression, base)
		if sized {
			text += fmt.Sprintf("FileSize: %d\n", 100*n+i)
		}
	}
	return []byte(text)
}

// makeOriginal makes a database of the original with so many items.
func makeOriginal(t testing.TB, path string, items int) {
	t.Helper()
	w, err := original.Create(t.Context(), path)
	must(t, err)
	for n := range items {
		item := original.Item{Text: textOf(n, true), AddedAt: testTime.Add(time.Duration(n) * time.Second)}
		if n%100 == 1 {
			item.Tags = []original.Tag{{Key: "hundred", Value: "yes"}, {Key: "n", Value: fmt.Sprint(n)}}
		}
		if n%100 == 2 {
			item.Cached = []original.Cached{{Compression: "zstd", Size: int64(n)}}
		}
		must(t, w.Add(item))
		if n%10 == 0 {
			must(t, w.AddChange(original.Change{At: item.AddedAt, Data: string(item.Text)}))
			must(t, w.AddChange(original.Change{At: item.AddedAt, Removal: true, Data: pathOf(-n - 2)}))
		}
	}
	must(t, w.Finish(t.Context()))
}

func execute(t testing.TB, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	must(t, err)
	defer db.Close()
	db.SetMaxOpenConns(1)
	for _, statement := range statements {
		if _, err := db.Exec(statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// want asserts that the index has the content of the original.
func want(t *testing.T, path string, items int) {
	t.Helper()
	x, err := index.Open(t.Context(), path, index.Options{})
	must(t, err)
	defer x.Close()
	n := 0
	for item, err := range x.Items(t.Context()) {
		must(t, err)
		if item.Hash != hashOf(n) || !bytes.Equal(item.Text, textOf(n, true)) || !item.AddedAt.Equal(testTime.Add(time.Duration(n)*time.Second)) {
			t.Fatalf("item %d: %s at %s: %s", n, item.Hash, item.AddedAt, item.Text)
		}
		if n%100 < 4 {
			tags, err1 := x.Tags(t.Context(), item.Hash)
			cached, err2 := x.CachedFiles(t.Context(), item.Hash)
			must(t, errors.Join(err1, err2))
			var wantTags []index.Tag
			if n%100 == 1 {
				wantTags = []index.Tag{{Key: "hundred", Value: "yes"}, {Key: "n", Value: fmt.Sprint(n)}}
			}
			if !slices.Equal(tags, wantTags) {
				t.Errorf("item %d: tags %v, want %v", n, tags, wantTags)
			}
			if n%100 == 2 != (len(cached) == 1 && cached[0].Type == "zstd" && cached[0].Size == int64(n) && cached[0].WithdrawnAt.IsZero()) {
				t.Errorf("item %d: cached %v", n, cached)
			}
		}
		n++
	}
	if n != items {
		t.Errorf("%d items, want %d", n, items)
	}
	page, err := x.ChangesAfter(t.Context(), 0, items+10)
	must(t, err)
	if len(page.Changes) != 2*((items+9)/10) {
		t.Errorf("%d changes of %d items", len(page.Changes), items)
	}
	for i, change := range page.Changes {
		n := i / 2 * 10
		switch {
		case !change.At.Equal(testTime.Add(time.Duration(n) * time.Second)):
			t.Errorf("change %d: at %v", i, change.At)
		case i%2 == 0 && !bytes.Equal(change.Text, textOf(n, true)), i%2 == 1 && change.StorePath != pathOf(-n-2):
			t.Errorf("change %d: %+v", i, change)
		}
	}
	if count, err := x.Totals(t.Context()); err != nil || count.Items != int64(items) || count.StoredNars != 0 {
		t.Errorf("totals: %+v, %v", count, err)
	}
	wantReferrers := []narinfo.PathHash{hashOf(1), hashOf(2), hashOf(3)}
	if referrers, err := x.Referrers(t.Context(), hashOf(1)); err != nil || !slices.Equal(referrers, wantReferrers) {
		t.Errorf("referrers: %v, %v", referrers, err)
	}
}

// onlyFiles asserts which files a directory has.
func onlyFiles(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var found []string
	for _, entry := range entries {
		found = append(found, entry.Name())
	}
	slices.Sort(names)
	if !slices.Equal(found, names) {
		t.Errorf("files %q, want %q", found, names)
	}
}

func TestBothWays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, to, back := filepath.Join(dir, "from.db"), filepath.Join(dir, "to.db"), filepath.Join(dir, "back.db")
	const items = 534
	makeOriginal(t, from, items)
	must(t, os.Chmod(from, 0o640))
	before, err := os.ReadFile(from)
	must(t, err)
	var last Progress
	result, err := Convert(t.Context(), from, to, Options{Progress: func(p Progress) { last = p }})
	must(t, err)
	counts := Result{Items: items, Tagged: 6, Cached: 6, Changes: 108}
	if result != counts || last != (Progress{items, items}) {
		t.Errorf("%+v, progress %v", result, last)
	}
	want(t, to, items)
	if info, err := os.Stat(to); err != nil || info.Mode() != 0o640 {
		t.Errorf("mode: %v, %v", info.Mode(), err)
	}
	if after, err := os.ReadFile(from); err != nil || !bytes.Equal(before, after) {
		t.Errorf("the source has changed, %v", err)
	}
	result, err = Convert(t.Context(), to, back, Options{})
	must(t, err)
	counts.ToOriginal = true
	if result != counts {
		t.Errorf("back: %+v", result)
	}
	onlyFiles(t, dir, "from.db", "to.db", "back.db")
	a, err := original.Open(t.Context(), from)
	must(t, err)
	defer a.Close()
	b, err := original.Open(t.Context(), back)
	must(t, err)
	defer b.Close()
	if first, second := dump(t, a), dump(t, b); first != second {
		t.Errorf("%s\n---\n%s", first[:2000], second[:2000])
	}
	// Neither direction overwrites a file.
	for _, names := range [][2]string{{from, to}, {to, from}, {from, from}, {to, to}} {
		if _, err := Convert(t.Context(), names[0], names[1], Options{}); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s over %s: %v", names[0], names[1], err)
		}
	}
}

func dump(t *testing.T, d *original.Database) string {
	var text strings.Builder
	for item, err := range d.Items(t.Context(), original.FromStart) {
		must(t, err)
		fmt.Fprintf(&text, "%+v\n", item)
	}
	for change, err := range d.Changes(t.Context()) {
		must(t, err)
		fmt.Fprintf(&text, "%+v\n", change)
	}
	return text.String()
}

// lookFor is a storage with the files in the map, by names.
type lookFor map[string]int64

func (l lookFor) Stat(_ context.Context, name string) (bytestore.Info, error) {
	size, ok := l[name]
	if !ok {
		return bytestore.Info{}, fs.ErrNotExist
	}
	if size < 0 {
		return bytestore.Info{}, errors.New("disk on fire")
	}
	return bytestore.Info{Name: name, Size: size}, nil
}

// TestStored: only nars that are complete in the storage are recorded as stored.
func TestStored(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from := filepath.Join(dir, "from.db")
	base := func(n int) string { return filepath.Base(pathOf(n)) }
	strange := bytes.ReplaceAll(textOf(6, true), []byte("nar/lzip/"+base(6)), []byte("nar/lzip/"+base(1)))
	w, err := original.Create(t.Context(), from)
	must(t, err)
	for n := range 5 {
		must(t, w.Add(original.Item{Text: textOf(n, n != 4)}))
	}
	must(t, w.Add(original.Item{Text: strange}))
	must(t, w.Finish(t.Context()))
	look := lookFor{
		"nar/lzip/" + base(1): 100, "nar/gzip/" + base(1): 101,
		"nar/lzip/" + base(2): 200, "nar/gzip/" + base(2): 200, // incomplete
		"nar/lzip/" + base(3): -1,
		"nar/gzip/" + base(4): 7, // a size that the narinfo does not give
	}
	var log bytes.Buffer
	to := filepath.Join(dir, "to.db")
	result, err := Convert(t.Context(), from, to, Options{Storage: look, Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	if result.Stored != 4 || result.Unknown != 1 || result.Items != 5 || result.LeftOut != 1 {
		t.Errorf("%+v", result)
	}
	if text := log.String(); strings.Count(text, "\n") != 2 || !strings.Contains(text, "nar/lzip/"+base(3)) || !strings.Contains(text, "disk on fire") || !strings.Contains(text, "named after another item") {
		t.Errorf("log: %s", text)
	}
	x, err := index.Open(t.Context(), to, index.Options{})
	must(t, err)
	defer x.Close()
	for n, want := range map[int]uint64{0: 0, 1: 3, 2: 1, 3: 0, 4: 2} {
		item, err := x.Item(t.Context(), hashOf(n))
		must(t, err)
		if item.Stored != want || (n == 4) != slices.Equal(item.Sizes, []int64{-1, 7}) || !item.AddedAt.IsZero() {
			t.Errorf("item %d: %b, want %b; sizes %v, at %v", n, item.Stored, want, item.Sizes, item.AddedAt)
		}
	}
	if _, err := x.Item(t.Context(), hashOf(6)); !errors.Is(err, index.ErrNotFound) {
		t.Errorf("an item that names another's nar: %v", err)
	}
	if totals, err := x.Totals(t.Context()); err != nil || totals.StoredNars != 4 || totals.StoredSize != 408 {
		t.Errorf("%+v, %v", totals, err)
	}
}

type onFire struct{}

func (onFire) Stat(context.Context, string) (bytestore.Info, error) {
	return bytestore.Info{}, errors.New("disk on fire")
}

// TestStorageFails: if the storage fails, the conversion fails, instead of recording no
// nars.
func TestStorageFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	makeOriginal(t, filepath.Join(dir, "from.db"), 200)
	_, err := Convert(t.Context(), filepath.Join(dir, "from.db"), filepath.Join(dir, "to.db"), Options{Storage: onFire{}})
	if err == nil || !strings.Contains(err.Error(), "disk on fire") || !strings.Contains(err.Error(), "try again") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "to.db")); err == nil {
		t.Error("it is there")
	}
	// Without the storage, it resumes.
	if _, err := Convert(t.Context(), filepath.Join(dir, "from.db"), filepath.Join(dir, "to.db"), Options{}); err != nil {
		t.Error(err)
	}
	want(t, filepath.Join(dir, "to.db"), 200)
}

// TestOddRows: malformed rows are skipped and logged, and the others are converted.
func TestOddRows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, to := filepath.Join(dir, "from.db"), filepath.Join(dir, "to.db")
	makeOriginal(t, from, 20)
	text := strings.ReplaceAll(string(textOf(3, true)), "NarSize: 1003", "NarSize: 1003\nX: 1")
	execute(t, from, "DROP INDEX narinfos_store_hash", "PRAGMA journal_mode = wal",
		"UPDATE narinfos SET contents = 'nonsense' WHERE id = 6",
		"UPDATE narinfos SET contents = CAST(contents AS BLOB), added_at = '2023-04-05T06:07:16.5Z' WHERE id = 9",
		"WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 30) INSERT INTO narinfos SELECT 1000 + n, '', '', 0, '', '', 'odd ' || n, '' FROM r",
		"INSERT INTO narinfos VALUES (2000, '', '', 0, '', '', '"+text+"', '2023-04-05 06:07:08')",
		"INSERT INTO recent_changes VALUES (100, '2023', 'addition', 'odd'), (101, '2023-04-05', 'removal', 'odd')")
	var log bytes.Buffer
	result, err := Convert(t.Context(), from, to, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	must(t, err)
	if result.Items != 19 || result.LeftOut != 33 || result.Repeated != 1 || result.Changes != 4 {
		t.Errorf("%+v", result)
	}
	if lines := strings.Count(log.String(), "\n"); lines != 21 || !strings.Contains(log.String(), "narinfos, row 6") || !strings.Contains(log.String(), "rows=33") {
		t.Errorf("%d lines: %s", lines, log.String())
	}
	x, err := index.Open(t.Context(), to, index.Options{})
	must(t, err)
	defer x.Close()
	if got, err := x.Text(t.Context(), hashOf(3)); err != nil || string(got) != text {
		t.Errorf("the last narinfo of an item: %s, %v", got, err)
	}
	item, err := x.Item(t.Context(), hashOf(8))
	if err != nil || !bytes.Equal(item.Text, textOf(8, true)) || !item.AddedAt.Equal(testTime.Add(8*time.Second)) {
		t.Errorf("a blob: %+v, %v", item, err)
	}
}

// TestWithdrawn: withdrawn items are not converted to an original.
func TestWithdrawn(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	from, mine, to := filepath.Join(dir, "from.db"), filepath.Join(dir, "mine.db"), filepath.Join(dir, "to.db")
	makeOriginal(t, from, 5)
	_, err := Convert(t.Context(), from, mine, Options{})
	must(t, err)
	x, err := index.Open(t.Context(), mine, index.Options{})
	must(t, err)
	must(t, x.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Withdraw(hashOf(3), testTime)
		return errors.Join(err, tx.WithdrawCached(hashOf(2), "zstd", testTime))
	}))
	must(t, x.Close())
	result, err := Convert(t.Context(), mine, to, Options{})
	if err != nil || result != (Result{Items: 4, Tagged: 1, Changes: 3, Withdrawn: 1, ToOriginal: true}) {
		t.Errorf("%+v, %v", result, err)
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	foreign, garbage := filepath.Join(dir, "foreign.db"), filepath.Join(dir, "garbage.db")
	execute(t, foreign, "CREATE TABLE cookies (id)")
	must(t, os.WriteFile(garbage, bytes.Repeat([]byte("garbage"), 1000), 0o644))
	for from, want := range map[string]error{
		foreign: index.ErrForeign, garbage: original.ErrNotDatabase, filepath.Join(dir, "missing.db"): fs.ErrNotExist,
	} {
		if _, err := Convert(t.Context(), from, filepath.Join(dir, "to.db"), Options{}); !errors.Is(err, want) || !strings.Contains(err.Error(), from) {
			t.Errorf("%s: %v, want %v", from, err, want)
		}
	}
	onlyFiles(t, dir, "foreign.db", "garbage.db")
}

func (lookFor) Concurrency() int { return 1 }

func (onFire) Concurrency() int { return 1 }
