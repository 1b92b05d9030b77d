package index

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// openTest opens a new index.
func openTest(t testing.TB) *Index {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "nar_herder.db"))
}

// openAt opens the index in a file until the end of the test.
func openAt(t testing.TB, path string) *Index {
	t.Helper()
	x, err := Open(context.Background(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := x.Close(); err != nil {
			t.Error(err)
		}
	})
	return x
}

// testPath returns the store path of the Nth item.
func testPath(n int) narinfo.StorePath {
	var hash narinfo.PathHash
	// Spread keys over all numbers, including negative ones, and out of order.
	mixed := uint64(n+1) * 0x9e3779b97f4a7c15
	for i := range hash {
		hash[i] = byte(mixed >> (8 * (i % 8)))
	}
	hash[19] = byte(n)
	return narinfo.StorePath{Hash: hash, Name: fmt.Sprintf("item-%d", n)}
}

// testNarinfo returns the narinfo of the Nth item. Each version has a different text. A
// size is the size of a file, or -1 for a file without FileSize.
func testNarinfo(n, version int, references []int, sizes ...int64) *narinfo.Narinfo {
	names := make([]string, len(references))
	for i, reference := range references {
		names[i] = testPath(reference).BaseName()
	}
	text := new(strings.Builder)
	fmt.Fprintf(text, "StorePath: %s\nNarHash: sha256:%s\nNarSize: %d\nReferences: %s\nVersion: %d\n",
		testPath(n), strings.Repeat("0", 52), 100+n, strings.Join(names, " "), version)
	for i, size := range sizes {
		fmt.Fprintf(text, "URL: nar/c%d/%s\nCompression: c%d\n", i, testPath(n).BaseName(), i)
		if size >= 0 {
			fmt.Fprintf(text, "FileSize: %d\n", size)
		}
	}
	info, err := narinfo.Parse([]byte(text.String()))
	if err != nil {
		panic(err) // a bug in the test
	}
	return info
}

// testTime is when test items were added.
var testTime = time.Date(2024, 2, 29, 23, 59, 59, 123_000_000, time.UTC)

// put writes a new or known item with all its files stored.
func put(t testing.TB, x *Index, n *narinfo.Narinfo) {
	t.Helper()
	update(t, x, func(tx *Tx) error { return putIn(tx, x, n, 1<<len(n.Files)-1, nil) })
}

func putIn(tx *Tx, x *Index, n *narinfo.Narinfo, stored uint64, sizes []int64) error {
	old, err := tx.Item(n.StorePath.Hash)
	if err != nil && err != ErrNotFound {
		return err
	}
	entry := x.Prepare(n)
	entry.AddedAt, entry.Stored, entry.Sizes = testTime, stored, sizes
	return tx.Put(entry, old)
}

func update(t testing.TB, x *Index, f func(*Tx) error) {
	t.Helper()
	if err := x.Update(context.Background(), f); err != nil {
		t.Fatal(err)
	}
}

// numbers converts hashes to the numbers of test items.
func numbers(t testing.TB, hashes []narinfo.PathHash, most int) []int {
	t.Helper()
	known := make(map[narinfo.PathHash]int, most)
	for n := range most {
		known[testPath(n).Hash] = n
	}
	found := []int{}
	for _, hash := range hashes {
		n, ok := known[hash]
		if !ok {
			t.Errorf("%s is none of the test's items", hash)
		}
		found = append(found, n)
	}
	return found
}

// referrers returns the items that refer to the Nth, sorted.
func referrers(t testing.TB, x *Index, n, most int) []int {
	t.Helper()
	hashes, err := x.Referrers(context.Background(), testPath(n).Hash)
	if err != nil {
		t.Fatal(err)
	}
	found := numbers(t, hashes, most)
	slices.Sort(found)
	return found
}

// items returns all items that have the tags.
func items(t testing.TB, x *Index, tags ...Tag) []*Item {
	t.Helper()
	var all []*Item
	for item, err := range x.Items(context.Background(), tags...) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, item)
	}
	return all
}

func wantTotals(t testing.TB, x *Index, want Totals) {
	t.Helper()
	got, err := x.Totals(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	if got != want {
		t.Errorf("totals are %+v, want %+v", got, want)
	}
}

// wantSound asserts that SQLite finds no damage, and that no row belongs to a missing item.
func wantSound(t testing.TB, x *Index) {
	t.Helper()
	c, err := connect(context.Background(), x.source)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	row, err := c.first("PRAGMA integrity_check")
	if err != nil || row[0] != "ok" {
		t.Errorf("integrity_check: %v, %v", row, err)
	}
	if row, err := c.first("PRAGMA foreign_key_check"); err != nil || row != nil {
		t.Errorf("foreign_key_check: %v, %v", row, err)
	}
	for _, query := range []string{
		"SELECT count(*) FROM narinfos WHERE id NOT IN (SELECT id FROM items)",
		"SELECT count(*) FROM items WHERE id NOT IN (SELECT id FROM narinfos)",
		"SELECT count(*) FROM referrers WHERE run NOT IN (SELECT id FROM runs)",
		"SELECT count(*) FROM runs WHERE id NOT IN (SELECT run FROM referrers)",
		"SELECT abs(items - (SELECT count(*) FROM items)) + abs(stored_size - (SELECT coalesce(sum(stored_size), 0) FROM items)) FROM totals",
	} {
		if n, err := c.integer(query); err != nil || n != 0 {
			t.Errorf("%s: %d, %v; want 0", query, n, err)
		}
	}
}
