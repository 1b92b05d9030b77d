package index

import (
	"bytes"
	"cmp"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// bulkRow is a row of a table that a treeWriter has written.
type bulkRow struct {
	id   int64
	n    int64
	blob []byte
}

// newBulk makes a database with two tables and an index, and begins to write behind pages of it.
func newBulk(t *testing.T, pages int64) (path string, file *pageFile, writers []*treeWriter) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "bulk.db")
	c, err := connect(t.Context(), fileName(path)+fmt.Sprintf("?_pragma=page_size(%d)", pageSize))
	if err != nil {
		t.Fatal(err)
	}
	err = c.script(`CREATE TABLE t0 (id INTEGER PRIMARY KEY, n, blob, none, head);
		CREATE TABLE t1 (id INTEGER PRIMARY KEY, n, blob, none, head);
		CREATE INDEX t0_by_n ON t0 (n, head)`)
	if err = errors.Join(err, c.close()); err != nil {
		t.Fatal(err)
	}
	if pages > 0 {
		if err := os.Truncate(path, pages*pageSize); err != nil {
			t.Fatal(err)
		}
	}
	if file, err = openPages(path); err != nil {
		t.Fatal(err)
	}
	for tree := range 3 { // their pages come after that of the schema
		writers = append(writers, newTreeWriter(file, int64(2+tree), tree == 2))
	}
	return path, file, writers
}

// fillBulk writes random rows to both tables, and to the index, and returns them.
func fillBulk(t *testing.T, random *rand.Rand, writers []*treeWriter, count int) [2][]bulkRow {
	t.Helper()
	lengths := []int{0, 1, 19, 20, 57, 58, 1000, leastInLeaf, mostInLeaf - 20, mostInLeaf, mostInLeaf + 1, pageSize, 2*pageSize + leastInLeaf, 5 * pageSize}
	numbers := []int64{0, 1, 2, -1, 127, 128, -128, -129, 1<<15 - 1, 1 << 15, -1 << 23, 1 << 23, 1 << 31, -1 << 31, 1<<47 - 1, 1 << 47, math.MaxInt64, math.MinInt64}
	var rows [2][]bulkRow
	var ids [2]int64
	var entries []bulkRow
	for range count {
		table := random.IntN(2)
		ids[table] += 1 + int64(random.IntN(2)*random.IntN(1<<20))
		row := bulkRow{ids[table], numbers[random.IntN(len(numbers))] + int64(random.IntN(2)), make([]byte, lengths[random.IntN(len(lengths))]+random.IntN(30))}
		for i := range row.blob {
			row.blob[i] = byte(random.Uint32())
		}
		rows[table] = append(rows[table], row)
		head := row.blob[:min(len(row.blob), 1000)]
		if table == 0 {
			entries = append(entries, bulkRow{row.id, row.n, head})
		}
		if err := writers[table].addRow(row.id, appendRecord(nil, nil, row.n, row.blob, nil, head)); err != nil {
			t.Fatal(err)
		}
	}
	slices.SortFunc(entries, func(a, b bulkRow) int {
		return cmp.Or(cmp.Compare(a.n, b.n), bytes.Compare(a.blob, b.blob), cmp.Compare(a.id, b.id))
	})
	for _, entry := range entries {
		if err := writers[2].addEntry(appendRecord(nil, entry.n, entry.blob, entry.id)); err != nil {
			t.Fatal(err)
		}
	}
	for _, w := range writers {
		if err := w.finish(); err != nil {
			t.Fatal(err)
		}
	}
	if err := writers[0].pages.finish(); err != nil {
		t.Fatal(err)
	}
	return rows
}

// wantBulk compares what SQLite reads with the rows.
func wantBulk(t *testing.T, c *connection, rows [2][]bulkRow) {
	t.Helper()
	for table, want := range rows {
		var got []bulkRow
		err := c.rows(fmt.Sprintf("SELECT id, n, blob FROM t%d WHERE none IS NULL", table), nil, func(row []driver.Value) (bool, error) {
			got = append(got, bulkRow{row[0].(int64), row[1].(int64), blob(row[2])})
			return true, nil
		})
		same := slices.EqualFunc(got, want, func(a, b bulkRow) bool { return a.id == b.id && a.n == b.n && bytes.Equal(a.blob, b.blob) })
		if err != nil || !same {
			t.Errorf("table %d has %d rows, %v; want the %d that were written", table, len(got), err, len(want))
		}
		for _, row := range want[max(0, len(want)-20):] {
			n, err := c.integer(fmt.Sprintf("SELECT n FROM t%d WHERE id = ?", table), row.id)
			if err != nil || n != row.n {
				t.Errorf("row %d: %d, %v; want %d", row.id, n, err, row.n)
			}
		}
	}
}

// TestTreeWriter: SQLite finds all rows, and nothing that is wrong, in trees of any height.
func TestTreeWriter(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for _, count := range []int{0, 1, 2, 5, 30, 1000} {
		for _, children := range []int{4, 5, pageSize} {
			path, _, writers := newBulk(t, 0)
			for _, w := range writers {
				w.maxChildren = children
			}
			rows := fillBulk(t, rand.New(rand.NewPCG(seed, uint64(count))), writers, count)
			c, err := connect(t.Context(), fileName(path))
			if err != nil {
				t.Fatal(err)
			}
			if err := c.sound(t.Context()); err != nil {
				t.Errorf("%d rows, %d children: %v", count, children, err)
			}
			wantBulk(t, c, rows)
			// It can be written to as any other.
			err = c.script("DELETE FROM t0 WHERE id % 2; UPDATE t0 SET n = n / 2; INSERT INTO t1 (n) SELECT n FROM t0")
			if err := errors.Join(err, c.sound(t.Context()), c.close()); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestTreeWriterLockPage: the page with the bytes that SQLite locks is left out.
func TestTreeWriterLockPage(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	for before := range int64(4) {
		path, file, writers := newBulk(t, lockPage-1-before) // a sparse file
		rows := fillBulk(t, rand.New(rand.NewPCG(seed, 1)), writers, 30)
		if file.last <= lockPage {
			t.Fatalf("it ends with page %d", file.last)
		}
		c, err := connect(t.Context(), fileName(path))
		if err != nil {
			t.Fatal(err)
		}
		wantBulk(t, c, rows)
		if err := c.close(); err != nil {
			t.Error(err)
		}
	}
}
