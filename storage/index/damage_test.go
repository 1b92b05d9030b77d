package index

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// damaged returns the damage that FindDamage finds.
func damaged(t testing.TB, x *Index) (all []*Damage) {
	t.Helper()
	for damage, err := range x.FindDamage(t.Context(), func() {}) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, damage)
	}
	return all
}

// mend tries to repair all damage, and returns how many repairs succeeded.
func mend(t testing.TB, x *Index, text []byte) (mended int) {
	t.Helper()
	for _, damage := range damaged(t, x) {
		update(t, x, func(tx *Tx) error {
			ok, err := tx.Mend(damage, text)
			if ok {
				mended++
			}
			return err
		})
	}
	return mended
}

// TestMend: each kind of damage is an error, is found, and is repaired with the text of
// another instance, or without it if the database has enough information.
func TestMend(t *testing.T) {
	t.Parallel()
	samples := sampleNarinfos(t, 2)
	n, err := narinfo.Parse(samples[0])
	if err != nil {
		t.Fatal(err)
	}
	other, err := narinfo.Parse(samples[1])
	if err != nil {
		t.Fatal(err)
	}
	hash := n.StorePath.Hash
	var swapped [8]byte
	binary.BigEndian.PutUint64(swapped[:], uint64(keyOf(hash))^1)
	for name, test := range map[string]struct {
		damage string
		alone  bool // repaired without the text
		served bool // the text is served regardless
	}{
		"text":             {damage: "UPDATE narinfos SET text = CAST(substr(text, 1, 99) || x'00' || substr(text, 101) AS BLOB) WHERE id = 1"},
		"no text":          {damage: "UPDATE narinfos SET text = x'' WHERE id = 1"},
		"other text":       {damage: "UPDATE narinfos SET text = (SELECT text FROM narinfos WHERE id = 2) WHERE id = 1"},
		"as it is":         {damage: "UPDATE narinfos SET dictionary = 0 WHERE id = 1"},
		"checksum":         {damage: "UPDATE narinfos SET checksum = checksum + 1 WHERE id = 1"},
		"withdrawn":        {damage: "UPDATE narinfos SET withdrawn_at = 0 WHERE id = 1", alone: true},
		"end of hash":      {damage: "UPDATE narinfos SET hash = CAST(substr(hash, 1, 19) || x'55' AS BLOB) WHERE id = 1", alone: true},
		"beginning of it":  {damage: "UPDATE narinfos SET hash = CAST(x'55' || substr(hash, 2) AS BLOB) WHERE id = 1", alone: true},
		"length of it":     {damage: "UPDATE narinfos SET hash = x'55' WHERE id = 1", alone: true},
		"references":       {damage: "UPDATE narinfos SET refs = x'' WHERE id = 1", alone: true, served: true},
		"dictionary":       {damage: "UPDATE dictionaries SET content = CAST(substr(content, 1, 999) || x'77' || substr(content, 1001) AS BLOB)", alone: true, served: true},
		"its checksum":     {damage: "UPDATE dictionaries SET checksum = checksum + 1", alone: true, served: true},
		"older, different": {damage: "UPDATE narinfos SET checksum = NULL, text = (SELECT text FROM narinfos WHERE id = 2) WHERE id = 1"},
		"older":            {damage: "UPDATE narinfos SET checksum = NULL WHERE id = 1", served: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "db")
			x := openAt(t, path)
			put(t, x, n)
			put(t, x, other)
			update(t, x, func(tx *Tx) error { return tx.conn.exec(test.damage) })
			x = openAt(t, path) // reads the dictionaries
			text, err := x.Text(t.Context(), hash)
			_, itemErr := x.Item(t.Context(), hash)
			if test.served {
				if err != nil || itemErr != nil || !bytes.Equal(text, n.Text) {
					t.Errorf("%q, %v, %v", text, err, itemErr)
				}
			} else if !errors.Is(err, ErrDamaged) || !errors.Is(itemErr, ErrDamaged) {
				t.Errorf("text: %v, item: %v, want ErrDamaged", err, itemErr)
			}
			if got, err := x.Text(t.Context(), other.StorePath.Hash); err != nil || !bytes.Equal(got, other.Text) {
				t.Errorf("the other item: %q, %v", got, err)
			}
			if name == "older" {
				return
			}
			found := damaged(t, x)
			if len(found) != 1 || found[0].Dictionary == 0 && name != "length of it" && found[0].Hash != hash {
				t.Fatalf("found %v", found)
			}
			if count, _ := x.Damages(); count == 0 {
				t.Error("it is not counted")
			}
			// A different text doesn't help.
			if mended := mend(t, x, other.Text); (mended == 1) != test.alone {
				t.Fatalf("mended %d without the text", mended)
			}
			if !test.alone {
				further := append(bytes.Clone(n.Text), "URL: nar/zstd/x\nCompression: zstd\nFileSize: 7\n"...)
				if mended := mend(t, x, further); mended != 1 {
					if name == "older, different" {
						return // the original text is unknown
					}
					t.Fatalf("mended %d with the text", mended)
				}
			}
			x = openAt(t, path)
			if found := damaged(t, x); len(found) > 0 {
				t.Errorf("then there is still %v", found)
			}
			item, err := x.Item(t.Context(), hash)
			if err != nil || !bytes.Equal(item.Text, n.Text) || !item.WithdrawnAt.IsZero() || item.Stored != 1 {
				t.Errorf("then it is %+v, %v", item, err)
			}
			wantSound(t, x)
		})
	}
}

// TestLost: an item with a wrong key is not found or not served, until it is imported
// again.
func TestLost(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	n := testNarinfo(1, 1, nil, 10)
	put(t, x, n)
	put(t, x, testNarinfo(2, 1, nil, 10))
	update(t, x, func(tx *Tx) error { return tx.conn.exec("DELETE FROM items WHERE id = 1") })
	if found := damaged(t, x); len(found) != 1 || found[0].Hash != n.StorePath.Hash {
		t.Fatalf("found %v", found)
	}
	if mended := mend(t, x, nil); mended != 0 {
		t.Error("it was repaired without an item")
	}
	put(t, x, n)
	if mended := mend(t, x, nil); mended != 1 {
		t.Error("the useless row was not removed")
	}
	if found := damaged(t, x); len(found) > 0 {
		t.Errorf("found %v", found)
	}
}

// TestDamagedChange: a removal with the path of another item is an error until it is
// repaired.
func TestDamagedChange(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	for n := range 3 {
		put(t, x, testNarinfo(n, 1, nil, 10))
	}
	update(t, x, func(tx *Tx) error { return tx.Remove(testPath(1).Hash, testTime) })
	update(t, x, func(tx *Tx) error {
		return tx.conn.exec("UPDATE recent_changes SET store_path = ? WHERE kind = ?", testPath(2).String(), int64(Removed))
	})
	if _, err := x.ChangesAfter(t.Context(), 0, 10); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
	if mended := mend(t, x, nil); mended != 1 {
		t.Errorf("%d repairs", mended)
	}
	if page, err := x.ChangesAfter(t.Context(), 0, 10); err != nil || len(page.Changes) != 2 {
		t.Errorf("%+v, %v", page, err)
	}
}

// TestDamagedCached: narinfos do not name a cached file with a wrong size.
func TestDamagedCached(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	n := testNarinfo(1, 1, nil, 10)
	hash := n.StorePath.Hash
	put(t, x, n)
	update(t, x, func(tx *Tx) error {
		return errors.Join(
			tx.PutCached(CachedFile{Hash: hash, Type: "gzip", Size: 7, LastUsed: testTime}),
			tx.PutCached(CachedFile{Hash: hash, Type: "zstd", Size: 9, LastUsed: testTime}),
			tx.conn.exec("UPDATE cached_files SET size = size + 64 WHERE type = 'zstd'"))
	})
	want := func(count int) {
		t.Helper()
		text, files, _, err := x.TextAndCached(t.Context(), hash)
		if err != nil || !bytes.Equal(text, n.Text) || len(files) != 1 || files[0].Type != "gzip" || files[0].Size != 7 {
			t.Errorf("%q, %+v, %v", text, files, err)
		}
		if found := damaged(t, x); len(found) != count {
			t.Errorf("found %v, want %d", found, count)
		}
	}
	want(1)
	if mended := mend(t, x, nil); mended != 1 {
		t.Errorf("%d repairs", mended)
	}
	want(0)
}

// TestRenew: a different text replaces a damaged one, and clears the record of its files.
func TestRenew(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	old, now := testNarinfo(1, 1, []int{2}, 10), testNarinfo(1, 2, []int{3}, 20, 30)
	put(t, x, old)
	put(t, x, testNarinfo(2, 1, nil, 5))
	update(t, x, func(tx *Tx) error {
		return errors.Join(tx.AddTags(old.StorePath.Hash, []Tag{{"a", "b"}}), tx.conn.exec("UPDATE narinfos SET text = x'00', dictionary = 0 WHERE id = 1"))
	})
	update(t, x, func(tx *Tx) error {
		_, err := tx.Item(old.StorePath.Hash)
		var damage *Damage
		if !errors.As(err, &damage) {
			return fmt.Errorf("it is not damaged: %w", err)
		}
		entry := x.Prepare(now)
		entry.AddedAt = testTime
		item, err := tx.Renew(damage, entry)
		if err == nil && (!bytes.Equal(item.Text, now.Text) || item.Stored != 0) {
			err = fmt.Errorf("it is %+v", item)
		}
		return err
	})
	wantTotals(t, x, Totals{2, 1, 5})
	if tags, err := x.Tags(t.Context(), old.StorePath.Hash); err != nil || len(tags) != 1 {
		t.Errorf("tags are %v, %v", tags, err)
	}
	if got := referrers(t, x, 3, 10); !slices.Equal(got, []int{1}) {
		t.Errorf("referrers are %v", got)
	}
	wantSound(t, x)
}

// TestSharedKey: a row of another hash with the same key is not damage.
func TestSharedKey(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	n := testNarinfo(1, 1, nil, 10)
	put(t, x, n)
	similar := n.StorePath.Hash
	similar[19]++
	if _, err := x.Text(t.Context(), similar); err != ErrNotFound {
		t.Errorf("text: %v, want ErrNotFound", err)
	}
	if _, err := x.Item(t.Context(), similar); err != ErrNotFound {
		t.Errorf("item: %v, want ErrNotFound", err)
	}
}

// TestListDamaged: a list has an error at the position of a damaged item, and all other
// items.
func TestListDamaged(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	for n := range 4 {
		put(t, x, testNarinfo(n, 1, nil, 10))
	}
	update(t, x, func(tx *Tx) error { return tx.conn.exec("UPDATE narinfos SET checksum = checksum + 1 WHERE id = 2") })
	listed := ""
	for item, err := range x.Items(t.Context()) {
		switch {
		case err == nil:
			listed += fmt.Sprint(item.Position(), " ")
		case errors.Is(err, ErrDamaged):
			listed += "damaged "
		default:
			t.Fatal(err)
		}
	}
	if listed != "1 damaged 3 4 " {
		t.Errorf("listed %q", listed)
	}
	var cursor int64
	found, _, err := x.Candidates(t.Context(), time.Time{}, testTime.AddDate(1, 0, 0), &cursor, 2)
	if err != nil || len(found) != 1 || cursor != 2 {
		t.Errorf("%d candidates, up to %d, %v", len(found), cursor, err)
	}
	// A bit that hides an item is not a withdrawal.
	update(t, x, func(tx *Tx) error { return tx.conn.exec("UPDATE narinfos SET withdrawn_at = 0 WHERE id = 4") })
	path := filepath.Join(t.TempDir(), "copy")
	got, err := x.Copy(t.Context(), path, testTime, 100)
	if err != nil || got.Items != 2 || len(got.Changes) != 2 || len(copied(t, path)) != 2 {
		t.Errorf("copy: %d items, %d changes, %v", got.Items, len(got.Changes), err)
	}
	if len(got.Damaged) != 2 || got.Damaged[0].Hash != testPath(1).Hash || got.Damaged[1].Hash != testPath(3).Hash {
		t.Errorf("copy: damaged are %v", got.Damaged)
	}
	foreign, err := OpenForeign(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	for _, err := range foreign.Rows(t.Context()) {
		if err != nil {
			t.Error(err)
		}
	}
	page, err := x.ChangesAfter(t.Context(), 0, 100)
	if err != nil || len(page.Changes) != 2 || page.Position != 4 {
		t.Errorf("%d changes up to %d, %v", len(page.Changes), page.Position, err)
	}
	// After the repair, mirrors that have skipped it receive it.
	if mended := mend(t, x, testNarinfo(1, 1, nil, 10).Text); mended != 2 {
		t.Errorf("%d repairs", mended)
	}
	if page, err = x.ChangesAfter(t.Context(), page.Position, 100); err != nil || len(page.Changes) != 2 {
		t.Errorf("%d changes, %v", len(page.Changes), err)
	}
}

// TestCopyWrecked: an index with much damage is not copied.
func TestCopyWrecked(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	for n := range maxDamaged + 1 {
		put(t, x, testNarinfo(n, 1, nil, 10))
	}
	update(t, x, func(tx *Tx) error { return tx.conn.exec("UPDATE narinfos SET checksum = checksum + 1") })
	if _, err := x.Copy(t.Context(), filepath.Join(t.TempDir(), "copy"), testTime, 100); !errors.Is(err, ErrDamaged) {
		t.Errorf("%v, want ErrDamaged", err)
	}
}

// TestMigrateChecksums: migrating a database of the previous version adds all checksums,
// and items that were damaged before are not served.
func TestMigrateChecksums(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "db")
	x, err := Open(t.Context(), path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var all []*narinfo.Narinfo
	for _, text := range sampleNarinfos(t, 2500) {
		n, err := narinfo.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	update(t, x, func(tx *Tx) error {
		for _, n := range all {
			if err := putIn(tx, x, n, 1, nil); err != nil {
				return err
			}
		}
		for _, old := range []string{
			toVersion6, "ALTER TABLE narinfos DROP COLUMN checksum", "ALTER TABLE dictionaries DROP COLUMN checksum",
			"INSERT INTO cached_files (item, type, size, last_used) VALUES (5, 'zstd', 9, 1)", "ALTER TABLE cached_files DROP COLUMN checksum", "PRAGMA user_version = 5",
			"UPDATE narinfos SET text = x'00' WHERE id = 1",
			"UPDATE narinfos SET text = (SELECT text FROM narinfos WHERE id = 3) WHERE id = 2",
			"UPDATE dictionaries SET content = CAST(substr(content, 1, 5000) || x'00' || substr(content, 5002) AS BLOB)",
		} {
			if err := tx.conn.script(old); err != nil {
				return err
			}
		}
		return nil
	})
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	done, err := Migrate(t.Context(), path)
	if err != nil || done.From != 5 {
		t.Fatalf("%+v, %v", done, err)
	}
	x = openAt(t, path)
	if n, err := x.writer.integer("SELECT (SELECT count(*) FROM narinfos WHERE checksum IS NULL) + (SELECT count(*) FROM cached_files WHERE checksum IS NULL)"); err != nil || n != 0 {
		t.Errorf("%d have none, %v", n, err)
	}
	for i, n := range all {
		text, err := x.Text(t.Context(), n.StorePath.Hash)
		if i < 2 {
			if !errors.Is(err, ErrDamaged) {
				t.Errorf("item %d: %v, want ErrDamaged", i, err)
			}
		} else if err != nil || !bytes.Equal(text, n.Text) {
			t.Errorf("item %d: %q, %v", i, text, err)
		}
	}
	if found := damaged(t, x); len(found) != 2 {
		t.Errorf("found %v", found)
	}
}

// TestOlderWriter: rows that a process of the version before checksums writes meanwhile are
// served.
func TestOlderWriter(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	old, now := testNarinfo(1, 1, nil, 10), testNarinfo(1, 2, []int{3}, 10)
	put(t, x, old)
	hash := old.StorePath.Hash
	update(t, x, func(tx *Tx) error {
		return tx.PutCached(CachedFile{Hash: hash, Type: "zstd", Size: 5, LastUsed: testTime})
	})
	entry := x.Prepare(now)
	update(t, x, func(tx *Tx) error {
		return errors.Join(
			tx.conn.exec("UPDATE narinfos SET refs = ?, dictionary = ?, text = ?, withdrawn_at = NULL WHERE id = ?",
				referencesColumn(now), entry.dictionary, entry.compressed, int64(1)),
			tx.conn.exec(`INSERT INTO cached_files (item, type, size, last_used) VALUES (?, ?, ?, ?)
				ON CONFLICT DO UPDATE SET size = excluded.size, last_used = excluded.last_used, withdrawn_at = NULL`, int64(1), "zstd", int64(6), int64(7)))
	})
	text, files, _, err := x.TextAndCached(t.Context(), hash)
	if err != nil || !bytes.Equal(text, now.Text) || len(files) != 1 || files[0].Size != 6 {
		t.Errorf("%q, %v, %v", text, files, err)
	}
	put(t, x, old)
	if n, err := x.writer.integer("SELECT count(*) FROM narinfos WHERE checksum IS NULL"); err != nil || n != 0 {
		t.Errorf("%d have no checksum, %v", n, err)
	}
}

// TestOlderRemoval: an item that a process of version 6 withdraws meanwhile is deleted in
// the end, and one that it puts again is not.
func TestOlderRemoval(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, nil, 10))
	hash, at := testPath(1).Hash, time.Now().Add(-time.Hour).UTC().Truncate(time.Millisecond)
	update(t, x, func(tx *Tx) error { return tx.PutCached(CachedFile{Hash: hash, Type: "zstd", Size: 5, LastUsed: at}) })
	withdraw := func(to any) {
		t.Helper()
		update(t, x, func(tx *Tx) error {
			return errors.Join(tx.conn.exec("UPDATE narinfos SET withdrawn_at = ?", to), tx.conn.exec("UPDATE cached_files SET withdrawn_at = ?", to))
		})
	}
	withdraw(at.UnixMilli())
	if n, err := x.BoundTimes(t.Context(), time.Now()); n != 2 || err != nil {
		t.Errorf("%d times were bounded, %v", n, err)
	}
	due := func() int {
		t.Helper()
		now := time.Now().Add(narinfo.UnadvertisedTTL + time.Hour)
		var cursor WithdrawnCursor
		items, _, err1 := x.WithdrawnPage(t.Context(), now, &cursor, 10)
		files, err2 := x.Deletable(t.Context(), "zstd", now, 10)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return len(items) + len(files)
	}
	if n := due(); n != 2 {
		t.Errorf("%d are due", n)
	}
	withdraw(nil)
	count, err := x.writer.integer("SELECT (SELECT count(delete_after) FROM narinfos) + (SELECT count(delete_after) FROM cached_files)")
	if n := due(); n != 0 || count != 0 || err != nil {
		t.Errorf("%d items that were put again are due, %d have a deletion time, %v", n, count, err)
	}
}

// TestBoundEarlyWithdrawal: the grace of an item that was withdrawn before the clock was
// set may end at a real time in the past.
func TestBoundEarlyWithdrawal(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, nil, 10))
	now := time.Now().UTC().Truncate(time.Millisecond)
	update(t, x, func(tx *Tx) error {
		return tx.conn.exec("UPDATE narinfos SET withdrawn_at = 60000, delete_after = ?", now.Add(-time.Hour).UnixMilli())
	})
	if _, err := x.BoundTimes(t.Context(), now); err != nil {
		t.Fatal(err)
	}
	item, err := x.Item(t.Context(), testPath(1).Hash)
	if err != nil || !item.WithdrawnAt.Equal(now) || !item.DeleteAfter.Equal(now.Add(narinfo.UnadvertisedTTL+answersKept)) {
		t.Errorf("%+v, %v", item, err)
	}
}
