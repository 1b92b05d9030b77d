package index

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"nar-herder/internal/testfs"
)

// fillIndex writes batches of items until one fails, and returns how many items are in the
// index, and the error.
func fillIndex(t testing.TB, x *Index, from int) (kept int, err error) {
	t.Helper()
	const batch = 50
	for ; from < 100_000; from += batch {
		err := x.Update(t.Context(), func(tx *Tx) error {
			for n := from; n < from+batch; n++ {
				if err := putIn(tx, x, testNarinfo(n, 1, []int{0, n, n + 1}, 10), 1, nil); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return from, err
		}
	}
	return from, nil
}

// wantKept asserts that the index has exactly the first kept items.
func wantKept(t testing.TB, x *Index, kept int) {
	t.Helper()
	wantTotals(t, x, Totals{int64(kept), int64(kept), int64(kept) * 10})
	for n := 0; n < kept+50; n++ {
		if n%23 != 0 && n < kept-50 {
			continue // checking each takes long
		}
		_, err := x.Text(t.Context(), testPath(n).Hash)
		if n < kept && err != nil || n >= kept && err != ErrNotFound {
			t.Fatalf("item %d of %d: %v", n, kept, err)
		}
	}
	if got, err := x.Referrers(t.Context(), testPath(0).Hash); err != nil || len(got) != kept {
		t.Errorf("%d referrers, %v; want %d", len(got), err, kept)
	}
}

// TestPageLimit: a transaction without room changes nothing, and the index works again when
// there is room.
func TestPageLimit(t *testing.T) {
	t.Parallel()
	// The room determines which statement fails.
	for pages := int64(42); pages < 58; pages++ {
		t.Run(fmt.Sprint(pages), func(t *testing.T) {
			t.Parallel()
			testPageLimit(t, pages)
		})
	}
}

func testPageLimit(t *testing.T, pages int64) {
	x := openTest(t)
	limit := func(pages int64) {
		t.Helper()
		row, err := x.writer.first(fmt.Sprintf("PRAGMA max_page_count = %d", pages))
		if err != nil || row[0] != pages {
			t.Fatalf("max_page_count is %v, %v", row, err)
		}
	}
	limit(pages)
	w := watch(t, x)
	kept, err := fillIndex(t, x, 0)
	if !errors.Is(err, ErrFull) || kept == 0 {
		t.Fatalf("%d items were kept: %v, want ErrFull", kept, err)
	}
	wantKept(t, x, kept)
	if changes := poll(t, w); len(changes) != kept {
		t.Errorf("%d changes, want %d", len(changes), kept)
	}
	if _, err := fillIndex(t, x, kept); !errors.Is(err, ErrFull) {
		t.Errorf("again: %v, want ErrFull", err)
	}
	wantKept(t, x, kept)
	limit(2 * pages)
	more, err := fillIndex(t, x, kept)
	if !errors.Is(err, ErrFull) || more <= kept {
		t.Fatalf("%d items were kept with more room: %v", more, err)
	}
	wantKept(t, x, more)
	wantSound(t, x)
}

// TestResumeFails: if the index can't be reopened for writing, nor for reading, both work
// again afterwards.
func TestResumeFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	x, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, x, testNarinfo(1, 1, nil, 1))
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	if x, err = openFull(t.Context(), path, Options{}); err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(path+suffix, path+"-away"+suffix); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Resume(t.Context()); err == nil || len(x.readers.free) != x.readers.size() || len(x.readers.idle) != x.readers.size() {
		t.Fatalf("%v, and %d connections of %d", err, len(x.readers.free), x.readers.size())
	}
	if _, err := x.Totals(t.Context()); err == nil {
		t.Error("read from an unreadable database")
	}
	for _, suffix := range []string{"", "-wal", "-shm"} {
		if err := os.Rename(path+"-away"+suffix, path+suffix); err != nil {
			t.Fatal(err)
		}
	}
	wantTotals(t, x, Totals{1, 1, 1})
	if err := x.Resume(t.Context()); err != nil || x.IsFull() {
		t.Errorf("it is not resumed: %v", err)
	}
	put(t, x, testNarinfo(2, 1, nil, 1))
}

// TestFullDisk does the same with a real file system.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	directory := testfs.Small(t, 1400<<10)
	ballast := filepath.Join(directory, "ballast")
	write(t, ballast, make([]byte, 512<<10))
	path := filepath.Join(directory, "db")
	x := openAt(t, path)
	other := openAt(t, path)
	kept, err := fillIndex(t, x, 0)
	if !errors.Is(err, ErrFull) || kept == 0 {
		t.Fatalf("%d items were kept: %v, want ErrFull", kept, err)
	}
	wantKept(t, x, kept)
	wantKept(t, other, kept)

	// Reading works without a free byte.
	free := testfs.Fill(t, directory)
	if _, err := fillIndex(t, x, kept); !errors.Is(err, ErrFull) {
		t.Errorf("on the filled disk: %v, want ErrFull", err)
	}
	wantKept(t, other, kept)
	if third, err := Open(t.Context(), path, Options{}); err == nil {
		wantKept(t, third, kept)
		if err := third.Close(); err != nil {
			t.Error(err)
		}
	} else {
		t.Errorf("open on the filled disk: %v", err)
	}
	free()
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	update(t, other, func(tx *Tx) error { return tx.Remove(testPath(kept-1).Hash, testTime) })
	put(t, x, testNarinfo(kept-1, 1, []int{0, kept - 1, kept}, 10))
	wantKept(t, x, kept)
	wantSound(t, x)
}

// TestFullDiskNew: a new database without room.
func TestFullDiskNew(t *testing.T) {
	t.Parallel()
	directory := testfs.Small(t, 1<<20)
	free := testfs.Fill(t, directory)
	path := filepath.Join(directory, "db")
	x, err := Open(t.Context(), path, Options{})
	if err == nil {
		x.Close()
	}
	if !errors.Is(err, ErrFull) {
		t.Errorf("Open: %v, want ErrFull", err)
	}
	free()
	wantKept(t, openAt(t, path), 0)
}
