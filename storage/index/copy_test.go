package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/testfs"
)

// wantAlone asserts that a directory has exactly these files.
func wantAlone(t testing.TB, directory string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(directory)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, entry := range entries {
		got = append(got, entry.Name())
	}
	if !slices.Equal(got, want) {
		t.Errorf("the directory has %q, want %q", got, want)
	}
}

// copied returns the items of a snapshot.
func copied(t testing.TB, path string) (all []*Item) {
	t.Helper()
	s, err := OpenSnapshot(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	for item, err := range s.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, item)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	return all
}

// TestCopyContent: a copy is a separate index, without data that concerns only the copied
// instance.
func TestCopyContent(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	const count = 40
	for n := range count {
		put(t, x, testNarinfo(n, 1, []int{0, n}, 10))
	}
	hash := testPath(7).Hash
	update(t, x, func(tx *Tx) error {
		_, err := tx.Pin(hash, testTime)
		return errors.Join(err,
			putIn(tx, x, testNarinfo(8, 1, []int{0, 8}, -1), 1, []int64{77}),
			tx.AddTags(hash, []Tag{{"branch", "main"}}),
			tx.AddPendingDeletes([]string{"nar/left"}),
			tx.SetSetting("uses_since", "2024"),
			tx.conn.exec("INSERT INTO uses SELECT id, 3, 4 FROM items WHERE key = ?", keyOf(hash)),
			tx.conn.exec("INSERT INTO cached_files SELECT id, 'zstd', 3, 4, NULL, NULL, NULL FROM items WHERE key = ?", keyOf(hash)))
	})
	update(t, x, func(tx *Tx) error {
		_, err := tx.Withdraw(testPath(count-1).Hash, testTime)
		return errors.Join(err, tx.Remove(testPath(count-2).Hash, testTime))
	})
	last, err := x.LastChange(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	directory := t.TempDir()
	path := filepath.Join(directory, "copy of it?")
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
	got, err := x.Copy(t.Context(), path, at, 3)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		testTime.Format(time.DateTime) + " +" + string(testNarinfo(8, 1, []int{0, 8}, -1).Text),
		testTime.Format(time.DateTime) + " -" + testPath(count-1).String(),
		testTime.Format(time.DateTime) + " -" + testPath(count-2).String(),
	}
	if got.LastChange != last || got.Items != count-2 || !slices.Equal(said(got.Changes), want) {
		t.Errorf("up to %d, %d items, %q; want %d, %d, %q", got.LastChange, got.Items, said(got.Changes), last, count-2, want)
	}
	wantAlone(t, directory, "copy of it?")
	snapshot := copied(t, path)
	wantAlone(t, directory, "copy of it?")
	if newest := newestOf(t, path); newest == nil || newest.Hash != testPath(count-3).Hash {
		t.Errorf("the newest item is %v", newest)
	}

	if program, err := exec.LookPath("sqlite3"); err == nil {
		out, err := exec.Command(program, path, `PRAGMA integrity_check; PRAGMA journal_mode; PRAGMA page_size; PRAGMA freelist_count;
			SELECT key, value FROM settings ORDER BY key;
			SELECT count(*) FROM tags; SELECT count(*) FROM item_tags; SELECT count(*) FROM uses; SELECT count(*) FROM cached_files;
			SELECT count(*) FROM pins; SELECT count(*) FROM leftovers; SELECT count(*) FROM recent_changes;
			SELECT name, seq FROM sqlite_sequence ORDER BY name;`).CombinedOutput()
		foreign, openErr := OpenForeign(t.Context(), path)
		if openErr != nil {
			t.Fatal(openErr)
		}
		sum := foreign.sum
		foreign.Close()
		want := fmt.Sprintf("ok\ndelete\n8192\n0\ndump.created_at|2026-01-02T02:04:05Z\ndump.instance|%s\ndump.last_change|%d\ndump.sum|%s\n0\n0\n0\n0\n0\n0\n0\nitems|40\n", x.Instance(), last, sum)
		if err != nil || !strings.HasPrefix(string(out), want) || strings.Contains(string(out), "recent_changes") {
			t.Errorf("%v: %s\nwant %s", err, out, want)
		}
	} else {
		t.Logf("not checked with the sqlite3 program: %v", err)
	}

	y := openAt(t, path)
	if y.Instance() == x.Instance() {
		t.Error("two instances have the same id")
	}
	all := items(t, y)
	if len(all) != count-2 || len(snapshot) != count-2 {
		t.Fatalf("%d items, %d in the snapshot", len(all), len(snapshot))
	}
	for n, item := range all {
		live, err := x.Item(t.Context(), item.Hash)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(item.Text, live.Text) || !item.AddedAt.Equal(live.AddedAt) || item.Position() != live.Position() || item.Stored != 0 || item.Sizes != nil || !item.Mirrored {
			t.Errorf("%+v, want it like %+v", item, live)
		}
		if !bytes.Equal(snapshot[n].Text, item.Text) || snapshot[n].Hash != item.Hash {
			t.Errorf("the snapshot has %+v", snapshot[n])
		}
	}
	wantTotals(t, y, Totals{Items: count - 2})
	wantSound(t, y)
	if got, want := referrers(t, y, 0, count), referrers(t, x, 0, count); len(got) != count-2 || !slices.Equal(got, want[:count-2]) {
		t.Errorf("referrers are %v, those of the live index %v", got, want)
	}
	if last, err := y.LastChange(t.Context()); err != nil || last != 0 {
		t.Errorf("the copy's log ends at %d, %v", last, err)
	}
	// A new item gets a new position, and not the referrers of a removed item.
	put(t, y, testNarinfo(100, 1, []int{0}, 10))
	if item, err := y.Item(t.Context(), testPath(100).Hash); err != nil || item.Position() != count+1 {
		t.Errorf("%+v, %v", item, err)
	}
	wantSound(t, y)
}

func newestOf(t testing.TB, path string) *Item {
	t.Helper()
	s, err := OpenSnapshot(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	item, err := s.NewestItem()
	if err != nil {
		t.Fatal(err)
	}
	return item
}

// TestCopyEmpty copies an empty index.
func TestCopyEmpty(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	path := filepath.Join(t.TempDir(), "copy")
	got, err := x.Copy(t.Context(), path, testTime, 10)
	if err != nil || got.LastChange != 0 || got.Items != 0 || len(got.Changes) != 0 || newestOf(t, path) != nil || len(copied(t, path)) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	wantSound(t, openAt(t, path))
}

// TestCopyOfAMoment: each copy has whole transactions only, and exactly those up to its
// last change, while this process and another one change more than the write-ahead log's
// size.
func TestCopyOfAMoment(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	directory := t.TempDir()
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	other := helper(t, x.Path(), 100_000, 150)
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	written := make(chan error, 1)
	begun := make(chan struct{})
	go func() {
		for n := 0; ctx.Err() == nil; n += 2 {
			err := x.Update(context.Background(), func(tx *Tx) error {
				err := errors.Join(
					putIn(tx, x, testNarinfo(n, 1, []int{n}, 10), 1, nil),
					putIn(tx, x, testNarinfo(n+1, 1, []int{n}, 10), 1, nil))
				if n >= 20 { // and remove an earlier pair
					_, withdrawErr := tx.Withdraw(testPath(n-20).Hash, testTime)
					err = errors.Join(err, withdrawErr, tx.Remove(testPath(n-19).Hash, testTime))
				}
				return err
			})
			if err != nil {
				written <- err
				return
			}
			if n == 40 {
				close(begun)
			}
		}
		written <- nil
	}()
	<-begun
	hashes := make([]string, 20_001)
	for n := range hashes {
		hashes[n] = testPath(n).Hash.String()
	}
	for i := range 8 {
		path := filepath.Join(directory, fmt.Sprint(i))
		got, err := x.Copy(t.Context(), path, testTime, 10_000_000)
		if err != nil {
			t.Fatal(err)
		}
		var pairs, others, changes int64
		known := make(map[string]bool)
		for _, item := range copied(t, path) {
			known[item.Hash.String()] = true
		}
		for n := range 20_000 {
			first, second := known[hashes[n]], known[hashes[n+1]]
			if n%2 == 0 && first != second {
				t.Errorf("one item of pair %d is missing", n)
			}
			if first {
				pairs++
			}
		}
		for n := 100_000; n < 100_150; n++ {
			if known[testPath(n).Hash.String()] {
				others++
			}
		}
		if pairs > 20 || pairs+others != got.Items {
			t.Errorf("%d items of pairs and %d others, of %d", pairs, others, got.Items)
		}
		// The log up to this change results in exactly these items.
		page, err := x.ChangesAfter(t.Context(), 0, 10_000_000)
		if err != nil {
			t.Fatal(err)
		}
		if page.First != 1 {
			t.Fatalf("the log begins at %d", page.First)
		}
		c, err := connect(t.Context(), x.source)
		if err != nil {
			t.Fatal(err)
		}
		changes, err = c.integer(`SELECT coalesce(sum(CASE kind WHEN 1 THEN 1 WHEN 2 THEN -1 END), 0) FROM recent_changes WHERE id <= ?`, got.LastChange)
		if err != nil || changes != got.Items {
			t.Errorf("up to change %d, the log has %d items, %v; the copy %d", got.LastChange, changes, err, got.Items)
		}
		c.close()
	}
	stop()
	if err := <-written; err != nil {
		t.Error(err)
	}
	if err := other.Wait(); err != nil {
		t.Error(err)
	}
	wantSound(t, x)
}

// TestCopyFails: a failed copy leaves no file, and doesn't damage anything else.
func TestCopyFails(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	if _, err := fillUpTo(t, x, 2000); err != nil {
		t.Fatal(err)
	}
	t.Run("a file of that name", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "copy")
		write(t, path, []byte("mine"))
		if _, err := x.Copy(t.Context(), path, testTime, 10); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%v, want fs.ErrExist", err)
		}
		if string(read(t, path)) != "mine" {
			t.Error("it was changed")
		}
	})
	t.Run("no directory", func(t *testing.T) {
		if _, err := x.Copy(t.Context(), filepath.Join(t.TempDir(), "no", "copy"), testTime, 10); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%v, want fs.ErrNotExist", err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		directory := t.TempDir()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := x.Copy(ctx, filepath.Join(directory, "copy"), testTime, 10); !errors.Is(err, context.Canceled) {
			t.Errorf("%v, want context.Canceled", err)
		}
		wantAlone(t, directory, "copy") // the caller removes it
	})
	t.Run("no room", func(t *testing.T) {
		for _, size := range []int64{8 << 10, 64 << 10, 200 << 10, 500 << 10} {
			directory := testfs.Small(t, size)
			if _, err := x.Copy(t.Context(), filepath.Join(directory, "copy"), testTime, 10); !errors.Is(err, ErrFull) {
				t.Errorf("in %d bytes: %v, want ErrFull", size, err)
			}
			wantAlone(t, directory)
		}
	})
	t.Run("a newer schema", func(t *testing.T) {
		directory := t.TempDir()
		update(t, x, func(tx *Tx) error { return tx.conn.script(fmt.Sprintf("PRAGMA user_version = %d", len(migrations)+1)) })
		if _, err := x.Copy(t.Context(), filepath.Join(directory, "copy"), testTime, 10); !errors.Is(err, ErrNewerVersion) {
			t.Errorf("%v, want ErrNewerVersion", err)
		}
		wantAlone(t, directory)
		update(t, x, func(tx *Tx) error { return tx.conn.script(fmt.Sprintf("PRAGMA user_version = %d", len(migrations))) })
	})
	path := filepath.Join(t.TempDir(), "copy")
	if got, err := x.Copy(t.Context(), path, testTime, 10); err != nil || got.Items != 2000 {
		t.Errorf("in the end: %+v, %v", got, err)
	}
	t.Run("damaged", func(t *testing.T) {
		damaged := filepath.Join(t.TempDir(), "damaged")
		text := read(t, path)
		for at := 3 * pageSize; at < len(text); at += 5 * pageSize {
			for i := range 64 {
				text[at+i] ^= 0x55
			}
		}
		write(t, damaged, text)
		c, err := connect(t.Context(), fileName(damaged)+"?_query_only=on")
		if err != nil {
			t.Fatal(err)
		}
		defer c.close()
		if err := c.checkIntegrity(t.Context()); err == nil {
			t.Error("a damaged copy passes the check")
		}
	})
}

// fillUpTo writes items up to this number.
func fillUpTo(t testing.TB, x *Index, count int) (int, error) {
	t.Helper()
	err := x.Update(t.Context(), func(tx *Tx) error {
		for n := range count {
			if err := putIn(tx, x, testNarinfo(n, 1, []int{0, n}, 10), 1, nil); err != nil {
				return err
			}
		}
		return nil
	})
	return count, err
}

// TestOpenSnapshot refuses a file that is not a copy, and changes nothing.
func TestOpenSnapshot(t *testing.T) {
	t.Parallel()
	directory := t.TempDir()
	for name, make := range map[string]func(path string){
		"none":     func(string) {},
		"empty":    func(path string) { write(t, path, nil) },
		"text":     func(path string) { write(t, path, bytes.Repeat([]byte("text "), 1000)) },
		"database": func(path string) { makeDatabase(t, path, "CREATE TABLE t (a)") },
	} {
		path := filepath.Join(directory, name)
		make(path)
		if s, err := OpenSnapshot(t.Context(), path); err == nil {
			s.Close()
			t.Errorf("%s: it is opened", name)
		}
	}
	wantAlone(t, directory, "database", "empty", "text")
}
