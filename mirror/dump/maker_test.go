package dump

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nar-herder/mirror/original"
	"nar-herder/storage/index"
)

// TestMake: a dump is three files with the same state. The newest two are kept, and open
// files can be read to their end.
func TestMake(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 1300)
	directory := t.TempDir()
	path := filepath.Join(directory, "dump.db")
	m := newMaker(t, x, path)
	if generations, err := m.Published().Generations(); err != nil || len(generations) != 0 {
		t.Errorf("before the first: %v, %v", generations, err)
	}
	first := mustMake(t, m)
	state := wantSame(t, m.Published(), first)
	if len(state.texts) != 1300 || len(state.changes) != changesKept {
		t.Errorf("%d items and %d changes", len(state.texts), len(state.changes))
	}
	newest := narinfoOf(1299)
	if want := testTime.Add(1299*time.Second).Format(time.DateTime) + " false " + string(newest.Text); state.changes[changesKept-1] != want {
		t.Errorf("the newest change is %q, want %q", state.changes[changesKept-1], want)
	}
	for key, want := range map[string]string{"instance": x.Instance(), "last_change": "1300", "items": "1300", "created_at": first.CreatedAt.Format(time.RFC3339)} {
		if state.info[key] != want {
			t.Errorf("info %s is %q, want %q", key, state.info[key], want)
		}
	}

	old, err := m.Published().Open(first.Index)
	must(t, err)
	defer old.Close()
	var kept []File
	for n := 2; n <= 4; n++ {
		must(t, x.Update(t.Context(), func(tx *index.Tx) error { return tx.Remove(hashOf(n), testTime) }))
		g := mustMake(t, m)
		if !g.CreatedAt.After(first.CreatedAt) || g.LastChange != int64(1299+n) || g.Items != int64(1301-n) {
			t.Errorf("%+v follows %+v", g, first)
		}
		generations, err := m.Published().Generations()
		must(t, err)
		if len(generations) != 2 || generations[1] != first {
			t.Fatalf("%+v are there, and should be the newest and the one before: %+v", generations, first)
		}
		wantSame(t, m.Published(), first)
		wantSame(t, m.Published(), g)
		kept = append(g.files(), first.files()...)
		first = g
	}
	want := []string{"dump.db", "dump.db.zst", "dump.db.index", "dump.db.json", "dump.db.lock"}
	for _, file := range kept {
		want = append(want, file.Name)
	}
	slices.Sort(want)
	if got := names(t, directory); !slices.Equal(got, want) {
		t.Errorf("the directory has %q, want %q", got, want)
	}
	// The plain names are for web servers and people.
	for suffix, file := range map[string]File{"": first.Database, ".zst": first.Zstd, ".index": first.Index} {
		plain, err1 := os.Stat(path + suffix)
		named, err2 := os.Stat(filepath.Join(directory, file.Name))
		if err := errors.Join(err1, err2); err != nil || !os.SameFile(plain, named) || plain.Mode().Perm()&0o044 != 0o044 {
			t.Errorf("%s: %v, %v, %v", path+suffix, plain, named, err)
		}
	}
	if n, err := io.Copy(io.Discard, old); err != nil || n == 0 {
		t.Errorf("an open file has %d bytes: %v", n, err)
	}
}

// TestOriginal: a client that queries the database like the original gets the items.
func TestOriginal(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 30)
	must(t, x.Update(t.Context(), func(tx *index.Tx) error {
		_, err := tx.Withdraw(hashOf(4), testTime.Add(time.Hour))
		return errors.Join(err, tx.AddTags(hashOf(5), []index.Tag{{Key: "branch", Value: "main"}}))
	}))
	path := filepath.Join(t.TempDir(), "dump.db")
	mustMake(t, newMaker(t, x, path))
	item := narinfoOf(7)
	want := fmt.Sprintf("29\n%s|%s|%d|%s\n/nar/lzip/%s|lzip|17\n%s\n%s\n0\n0\n0\n%s|removal|%s\nok\ndelete\n",
		item.StorePath, item.NarHash, item.NarSize, testTime.Add(7*time.Second).Format(time.DateTime), item.StorePath.BaseName(),
		narinfoOf(0).StorePath, item.StorePath, testTime.Add(time.Hour).Format(time.DateTime), narinfoOf(4).StorePath)
	got := runSQLite(t, path, fmt.Sprintf(`SELECT count(*) FROM narinfos;
		SELECT store_path, nar_hash, nar_size, added_at FROM narinfos WHERE substr(store_path, 12, 32) = '%[1]s';
		SELECT url, compression, size FROM narinfo_files WHERE narinfo_id = (SELECT id FROM narinfos WHERE substr(store_path, 12, 32) = '%[1]s');
		SELECT store_path FROM narinfo_references WHERE narinfo_id = (SELECT id FROM narinfos WHERE substr(store_path, 12, 32) = '%[1]s') ORDER BY 1;
		SELECT count(*) FROM tags; SELECT count(*) FROM narinfo_tags; SELECT count(*) FROM cached_narinfo_files;
		SELECT datetime, change, data FROM recent_changes ORDER BY datetime DESC LIMIT 1;
		PRAGMA integrity_check; PRAGMA journal_mode`, hashOf(7)))
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if plan := runSQLite(t, path, "EXPLAIN QUERY PLAN SELECT id FROM narinfos WHERE substr(store_path, 12, 32) = 'x'"); !strings.Contains(plan, "INDEX") {
		t.Errorf("it has no index by the hash: %s", plan)
	}
}

// TestNoLog: without a log, as in a mirror that began with an index, an original still
// finds a time to resume from.
func TestNoLog(t *testing.T) {
	t.Parallel()
	source := newIndex(t, 5)
	path := filepath.Join(t.TempDir(), "index")
	_, err := source.Copy(t.Context(), path, testTime, 0)
	must(t, err)
	x := openIndex(t, path)
	m := newMaker(t, x, filepath.Join(t.TempDir(), "dump.db"))
	g := mustMake(t, m)
	state := wantSame(t, m.Published(), g)
	want := []string{testTime.Add(4*time.Second).Format(time.DateTime) + " false " + string(narinfoOf(4).Text)}
	if g.LastChange != 0 || g.Instance == source.Instance() || !slices.Equal(state.changes, want) {
		t.Errorf("%+v has the changes %q, want %q", g, state.changes, want)
	}
}

// TestEmpty: the dump of an empty index is valid.
func TestEmpty(t *testing.T) {
	t.Parallel()
	m := newMaker(t, newIndex(t, 0), filepath.Join(t.TempDir(), "dump.db"))
	if state := wantSame(t, m.Published(), mustMake(t, m)); len(state.texts) != 0 || len(state.changes) != 0 {
		t.Errorf("%+v", state)
	}
}

// TestWhileWriting: each dump is a consistent state while items are added and removed in
// pairs.
func TestWhileWriting(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 20)
	m := newMaker(t, x, filepath.Join(t.TempDir(), "dump.db"))
	ctx, stop := context.WithCancel(context.Background())
	var writing sync.WaitGroup
	defer writing.Wait()
	defer stop()
	writing.Go(func() {
		for n := 20; ctx.Err() == nil; n += 2 {
			if err := add(context.Background(), x, n, n+1); err != nil {
				t.Error(err)
				return
			}
			err := x.Update(context.Background(), func(tx *index.Tx) error {
				_, err := tx.Withdraw(hashOf(n-20), testTime)
				return errors.Join(err, tx.Remove(hashOf(n-19), testTime))
			})
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	last := int64(0)
	for range 5 {
		g := mustMake(t, m)
		state := wantSame(t, m.Published(), g)
		if g.LastChange <= last {
			t.Errorf("a dump ends at change %d, and the one before at %d", g.LastChange, last)
		}
		last = g.LastChange
		pairs := make(map[int]int)
		for _, text := range state.texts {
			var n int
			_, name, _ := strings.Cut(text, "-item-")
			if _, err := fmt.Sscanf(name, "%d\n", &n); err != nil {
				t.Fatal(err)
			}
			pairs[n/2]++
		}
		for pair, count := range pairs {
			if count != 2 {
				t.Errorf("of the pair %d there is one", pair)
			}
		}
		if len(pairs) != 10 && len(pairs) != 11 {
			t.Errorf("%d pairs, which there never were", len(pairs))
		}
	}
}

// TestTrimming: only changes that are in all dumps, old, and not among the newest leave the
// log.
func TestTrimming(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	m := newMaker(t, x, filepath.Join(t.TempDir(), "dump.db"))
	first := func() int64 {
		t.Helper()
		page, err := x.ChangesAfter(t.Context(), 0, 1)
		must(t, err)
		return page.First
	}
	change := func(count int, at time.Time) {
		t.Helper()
		must(t, x.Update(t.Context(), func(tx *index.Tx) error {
			for range count {
				if err := tx.PutChange(index.Change{At: at, Kind: index.Removed, Hash: hashOf(9), StorePath: "/gnu/store/x"}); err != nil {
					return err
				}
			}
			return nil
		}))
	}
	const day = 24 * time.Hour
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	m.now = func() time.Time { return now }
	// make makes a dump after some time, and checks where the log begins.
	make := func(after time.Duration, want int64, why string) {
		t.Helper()
		now = now.Add(after)
		mustMake(t, m)
		if got := first(); got != want {
			t.Errorf("%s: the log begins at %d, want %d", why, got, want)
		}
	}
	make(0, 1, "few changes")
	// All changes have old times, like those that a mirror gets from its source.
	change(changesKept-3, testTime)
	change(200, testTime)
	make(day, 1, "changes that have just come")
	make(28*day, 1, "a day too early")
	make(day, 4, "three have been there for 30 days")
	make(day, 201, "all have, and the newest stay")
	change(50, time.Now())
	change(changesKept, testTime)
	make(day, 1201, "changes that have just come, again")
	make(28*day, 1201, "a day too early, again")
	make(2*day, 1251, "those have been there for long as well")
	change(2*changesKept, testTime)
	for range 30 {
		make(3*time.Hour, 2251, "many dumps")
	}
	all, err := readManifest(m.options.Path)
	must(t, err)
	if n := len(all.Marks); n > 20 {
		t.Errorf("there are %d marks of four days", n)
	}
	now = now.Add(-1000 * day) // the clock was wrong
	make(0, 2251, "a clock that was ahead")
}

// TestClockWasAhead: once the clock is right again, no time in a dump, nor the dump's own,
// is ahead.
func TestClockWasAhead(t *testing.T) {
	t.Parallel()
	x := newIndex(t, 3)
	m := newMaker(t, x, filepath.Join(t.TempDir(), "dump.db"))
	now := testTime.AddDate(1, 0, 0)
	m.now = func() time.Time { return now }
	must(t, x.Update(t.Context(), func(tx *index.Tx) error {
		entry := x.Prepare(narinfoOf(5))
		entry.AddedAt = now
		return tx.Put(entry, nil)
	}))
	mustMake(t, m)
	now = testTime.Add(time.Hour)
	g := mustMake(t, m)
	if g.CreatedAt.After(now) {
		t.Errorf("it is of %s", g.CreatedAt)
	}
	database, err := original.Open(t.Context(), m.options.Path)
	must(t, err)
	defer database.Close()
	count := 0
	for item, err := range database.Items(t.Context(), original.FromStart) {
		must(t, err)
		if count++; item.AddedAt.After(now) {
			t.Errorf("an item is of %s", item.AddedAt)
		}
	}
	for change, err := range database.Changes(t.Context()) {
		must(t, err)
		if count++; change.At.After(now) {
			t.Errorf("a change is of %s", change.At)
		}
	}
	if count != 8 {
		t.Errorf("%d items and changes, want 8", count)
	}
	// An earlier dump counts again while the clock is right.
	if _, made, err := m.changed(t.Context()); err != nil || made.After(now) {
		t.Errorf("the newest dump is of %s, %v", made, err)
	}
}
