package index

import (
	"path/filepath"
	"testing"
	"time"

	"nar-herder/narinfo"
)

// toVersion6 converts a database to schema version 6.
const toVersion6 = dropTriggers + `DROP INDEX items_fresh; DROP INDEX items_dropped; DROP INDEX items_droppable; DROP INDEX items_of_upstreams; ALTER TABLE items DROP COLUMN drop_after; ALTER TABLE items DROP COLUMN dropped_files; ALTER TABLE items DROP COLUMN fresh_until; ALTER TABLE items DROP COLUMN origin; DROP TABLE origins;
	DROP INDEX narinfos_lost; ALTER TABLE narinfos DROP COLUMN lost_at; DROP INDEX items_by_verification; ALTER TABLE items DROP COLUMN verified_at;
	DROP INDEX narinfos_deletable; ALTER TABLE narinfos DROP COLUMN delete_after;
	DROP INDEX cached_files_deletable; ALTER TABLE cached_files DROP COLUMN delete_after; PRAGMA user_version = 6`

// TestAdvertise starts servers with several options one after the other. A withdrawn item
// is kept as long as a client may hold a narinfo that any of them has served.
func TestAdvertise(t *testing.T) {
	t.Parallel()
	const hour, day = time.Hour, 24 * time.Hour
	begin := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	type start struct {
		at         time.Duration // since the first start
		ttl, grace time.Duration
	}
	for name, test := range map[string]struct {
		starts []start
		at     time.Duration // of the withdrawal
		want   time.Duration // since the first start
	}{
		"never served":             {nil, hour, hour + narinfo.UnadvertisedTTL},
		"one start":                {[]start{{0, 5 * day, 5 * day}}, hour, hour + 5*day},
		"the same again":           {[]start{{0, 5 * day, 5 * day}, {9 * day, 5 * day, 5 * day}}, 9 * day, 14 * day},
		"lowered":                  {[]start{{0, 30 * day, 30 * day}, {day, 0, 0}}, day + hour, 31 * day},
		"lowered, long ago":        {[]start{{0, 30 * day, 30 * day}, {day, hour, hour}}, 31 * day, 31*day + hour},
		"lowered twice":            {[]start{{0, 30 * day, 30 * day}, {day, 10 * day, 10 * day}, {2 * day, hour, hour}}, 3 * day, 31 * day},
		"lowered, raised, lowered": {[]start{{0, 2 * day, 2 * day}, {day, 20 * day, 20 * day}, {2 * day, hour, hour}}, 3 * day, 22 * day},
		"raised":                   {[]start{{0, hour, hour}, {day, 30 * day, 30 * day}}, day, 31 * day},
		"raised, lowered later":    {[]start{{0, 30 * day, 30 * day}, {40 * day, hour, hour}, {80 * day, hour, hour}}, 50 * day, 70 * day},
		"new-ttl at first":         {[]start{{0, hour, 30 * day}}, day, 31 * day},
		"new-ttl, then ttl":        {[]start{{0, 30 * day, 30 * day}, {day, hour, 30 * day}, {32 * day, hour, hour}}, 33 * day, 33*day + hour},
		"new-ttl, ttl too early":   {[]start{{0, 30 * day, 30 * day}, {day, hour, 30 * day}, {2 * day, hour, hour}}, 3 * day, 31 * day},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "db")
			for _, s := range test.starts {
				x, err := Open(t.Context(), path, Options{})
				if err != nil {
					t.Fatal(err)
				}
				advertised := Advertised{s.ttl, s.grace}
				if err := x.Advertise(t.Context(), begin.Add(s.at), map[string]Advertised{Narinfos: advertised, "zstd": advertised}); err != nil {
					t.Fatal(err)
				}
				if err := x.Close(); err != nil {
					t.Fatal(err)
				}
			}
			x := openAt(t, path)
			at := begin.Add(test.at)
			if due, err := x.DeleteAfter(t.Context(), at); err != nil || !due.Equal(begin.Add(test.want+answersKept)) && !due.Equal(begin.Add(test.want)) {
				t.Errorf("withdrawn after %v, it is kept until %v, want %v, %v", test.at, due.Sub(begin), test.want, err)
			}
			put(t, x, testNarinfo(1, 1, nil, 10))
			hash := testPath(1).Hash
			update(t, x, func(tx *Tx) error {
				for _, kind := range []string{"zstd", "gzip"} { // nothing is recorded for gzip
					if err := tx.PutCached(CachedFile{Hash: hash, Type: kind, Size: 1, LastUsed: begin}); err != nil {
						return err
					}
					if err := tx.WithdrawCached(hash, kind, at); err != nil {
						return err
					}
				}
				return nil
			})
			files, err := x.CachedFiles(t.Context(), hash)
			for _, file := range files {
				if !file.DeleteAfter.Equal(begin.Add(test.want)) {
					t.Errorf("%s is kept until %v, want %v", file.Type, file.DeleteAfter.Sub(begin), test.want)
				}
			}
			if err != nil || len(files) != 2 {
				t.Errorf("%d files, %v", len(files), err)
			}
		})
	}
}

// TestAdvertiseWritesRarely: a server that starts with the same options writes nothing.
func TestAdvertiseWritesRarely(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	all := map[string]Advertised{Narinfos: {time.Hour, time.Hour}}
	for n := range 3 {
		if err := x.Advertise(t.Context(), time.Now(), all); err != nil {
			t.Fatal(err)
		}
		if changed, err := x.writer.integer("SELECT total_changes()"); err != nil || n > 0 && changed != 0 {
			t.Errorf("start %d changes %d rows, %v", n, changed, err)
		}
		file := x.path
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		x = openAt(t, file)
	}
}

// TestAdvertiseWrongClock: a slow clock at a start does not shorten what was advertised,
// and a fast one does not lengthen it permanently.
func TestAdvertiseWrongClock(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, nil, 10))
	now := time.Now()
	update(t, x, func(tx *Tx) error { return tx.PutChange(Change{Kind: StorageChanged, At: now}) })
	advertise := func(at time.Time, ttl time.Duration) {
		t.Helper()
		if err := x.Advertise(t.Context(), at, map[string]Advertised{Narinfos: {ttl, ttl}}); err != nil {
			t.Fatal(err)
		}
	}
	kept := func() time.Duration {
		t.Helper()
		due, err := x.DeleteAfter(t.Context(), now)
		if err != nil {
			t.Fatal(err)
		}
		return due.Sub(now).Round(day)
	}
	advertise(now, 30*day)
	advertise(now.AddDate(-1, 0, 0), time.Hour)
	if got := kept(); got != 30*day {
		t.Errorf("after a start with a slow clock, items are kept for %v", got)
	}
	advertise(now.AddDate(1, 0, 0), 2*time.Hour)
	if got := kept(); got < 300*day {
		t.Errorf("after a start with a fast clock, items are kept for %v", got)
	}
	update(t, x, func(tx *Tx) error {
		_, err := tx.Withdraw(testPath(1).Hash, now)
		return err
	})
	if n, err := x.BoundTimes(t.Context(), now); err != nil || n != 2 {
		t.Errorf("%d times were bounded, %v", n, err)
	}
	item, err := x.Item(t.Context(), testPath(1).Hash)
	if err != nil {
		t.Fatal(err)
	}
	if got := item.DeleteAfter.Sub(now).Round(day); got != 30*day || kept() != 30*day {
		t.Errorf("the item is kept for %v, others for %v", got, kept())
	}
}

// TestMigrateDeleteAfter: the migration gives withdrawn items the grace that the last
// server recorded, and treats it as advertised.
func TestMigrateDeleteAfter(t *testing.T) {
	t.Parallel()
	const day = 24 * time.Hour
	for name, test := range map[string]struct {
		noted string
		want  time.Duration
	}{
		"none":     {"", narinfo.UnadvertisedTTL + answersKept},
		"long":     {"720h0m1s", 30*day + time.Second},
		"short":    {"1h0m1s", narinfo.UnadvertisedTTL + answersKept},
		"nonsense": {"x", 365 * day},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "db")
			x, err := Open(t.Context(), path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			put(t, x, testNarinfo(1, 1, nil, 10))
			put(t, x, testNarinfo(2, 1, nil, 10))
			at := time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
			hash := testPath(1).Hash
			update(t, x, func(tx *Tx) error {
				for _, kind := range []string{"zstd", "gzip"} {
					if err := tx.PutCached(CachedFile{Hash: hash, Type: kind, Size: 1, LastUsed: at}); err != nil {
						return err
					}
				}
				if err := tx.WithdrawCached(hash, "gzip", at); err != nil {
					return err
				}
				if _, err := tx.Withdraw(hash, at); err != nil {
					return err
				}
				if err := tx.SetSetting("removal.grace", test.noted); err != nil {
					return err
				}
				return tx.conn.script(toVersion6)
			})
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			if done, err := Migrate(t.Context(), path); err != nil || done.From != 6 {
				t.Fatalf("%+v, %v", done, err)
			}
			x = openAt(t, path)
			item, err := x.Item(t.Context(), hash)
			if err != nil || !item.WithdrawnAt.Equal(at) || !item.DeleteAfter.Equal(at.Add(test.want)) {
				t.Errorf("kept until %v, want %v, %v", item.DeleteAfter, at.Add(test.want), err)
			}
			if other, err := x.Item(t.Context(), testPath(2).Hash); err != nil || !other.WithdrawnAt.IsZero() || !other.DeleteAfter.IsZero() {
				t.Errorf("one that is not withdrawn: %+v, %v", other, err)
			}
			files, err := x.CachedFiles(t.Context(), hash)
			if err != nil || len(files) != 2 || !files[0].DeleteAfter.Equal(at.Add(test.want)) || !files[1].DeleteAfter.IsZero() {
				t.Errorf("%+v, %v", files, err)
			}
			// The next server advertises less.
			start := time.Now()
			if err := x.Advertise(t.Context(), start, map[string]Advertised{Narinfos: {1, 1}, "zstd": {1, 1}}); err != nil {
				t.Fatal(err)
			}
			due, err := x.DeleteAfter(t.Context(), start)
			if kept := due.Sub(start); err != nil || test.noted != "" && name != "short" && kept != test.want {
				t.Errorf("an item that is withdrawn then is kept for %v, want %v, %v", kept, test.want, err)
			}
			wantSound(t, x)
		})
	}
}
