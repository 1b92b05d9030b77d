package mirror

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"nar-herder/internal/hostile"
	"nar-herder/internal/testlog"
	"nar-herder/mirror/original"
	"nar-herder/narinfo"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// copyWith makes a copy of an index with the texts, which a script has changed.
func copyWith(t testing.TB, script string, texts ...string) []byte {
	t.Helper()
	x, err := index.Open(t.Context(), filepath.Join(t.TempDir(), "source.db"), index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	err = x.Update(t.Context(), func(tx *index.Tx) error {
		for n, text := range texts {
			info, err := narinfo.Parse([]byte(text))
			if err != nil {
				return err
			}
			entry := x.Prepare(info)
			entry.AddedAt = at(n)
			if err := tx.Put(entry, nil); err != nil {
				return err
			}
		}
		return nil
	})
	name := filepath.Join(t.TempDir(), "copy.db")
	if err == nil {
		_, err = x.Copy(t.Context(), name, time.Now(), 10)
	}
	if err := errors.Join(err, x.Close()); err != nil {
		t.Fatal(err)
	}
	return changed(t, name, script)
}

// changed runs a script on a database, and returns its content.
func changed(t testing.TB, name, script string) []byte {
	t.Helper()
	db, err := sql.Open("sqlite", name)
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(script)
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content
}

// crossings are rows beside the texts that nobody else may write.
const crossings = `
	INSERT INTO leftovers VALUES ('docs/precious.txt'), ('secret.key'), ('nar/none/notes');
	INSERT INTO pins VALUES (x'0000000000000000000000000000000000000001', 1);
	INSERT INTO settings VALUES ('storage.front_end_of', 'x'), ('mirror.accept', '2026-11-26T00:00:00Z'), ('mirror.place', '{"instance":"x","position":9}'),
		('storage.limit', '1'), ('instance', 'stolen'), ('replacing.docs/precious.txt', 'x');
	UPDATE items SET stored_files = 1, stored_size = 120, mirrored = 0;
	UPDATE totals SET stored_nars = 7, stored_size = 7;
	INSERT INTO tags VALUES (1, 'key', 'value');
	INSERT INTO item_tags SELECT id, 1 FROM items;
	INSERT INTO uses SELECT id, 9, 9 FROM items;
	INSERT INTO cached_files (item, type, size, last_used, withdrawn_at) SELECT id, 'zstd', 9, 9, NULL FROM items;
	INSERT INTO checksums SELECT id, 'x', 9, 9, x'00' FROM items;
	INSERT INTO recent_changes (at, kind, hash, store_path) SELECT 1, 2, hash, '/gnu/store/x' FROM narinfos;
	CREATE TRIGGER t AFTER INSERT ON settings BEGIN INSERT INTO leftovers VALUES ('docs/precious.txt'); END;`

// TestHostileIndex: of an index that a source publishes, only texts and their times come
// here, and of its dump as well, whatever else is in them.
func TestHostileIndex(t *testing.T) {
	t.Parallel()
	texts := hostileTexts()
	dump := filepath.Join(t.TempDir(), "dump.db")
	if err := os.WriteFile(dump, dumpWith(t, hostile.Instance, texts...), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, publish := range map[string]func(*hostile.Source){
		"index": func(s *hostile.Source) { s.Publish(peer.IndexPath, copyWith(t, crossings, texts...)) },
		"dump": func(s *hostile.Source) {
			s.Publish(peer.DumpPath, changed(t, dump, `
				CREATE TABLE leftovers (name TEXT PRIMARY KEY); INSERT INTO leftovers VALUES ('docs/precious.txt');
				CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT); INSERT INTO settings VALUES ('storage.limit', '1');
				INSERT INTO tags VALUES (1, 'key', 'value'); INSERT INTO narinfo_tags SELECT id, 1 FROM narinfos;
				INSERT INTO cached_narinfo_files SELECT id, id, 9, 'zstd' FROM narinfos;
				CREATE VIEW v AS SELECT * FROM narinfos; CREATE TRIGGER t AFTER INSERT ON narinfos BEGIN DELETE FROM narinfos; END;`))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := hostile.New()
			t.Cleanup(source.Close)
			source.Nar([]byte(evil))
			publish(source)
			x := beginWith(t, source)
			wantNothingElse(t, x)
			v := victimWith(t, x, source.URL)
			if at, err := readPlace(t.Context(), x); err != nil || at.Instance == "" || at.Instance == "x" {
				t.Errorf("it follows %+v, %v", at, err)
			}
			v.wantUnharmed(t)
		})
	}
}

// beginWith begins from a hostile source, and opens what that has come to.
func beginWith(t *testing.T, source *hostile.Source) *index.Index {
	t.Helper()
	base, err := url.Parse(source.URL)
	if err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(t.TempDir(), "index.db")
	log := new(testlog.Buffer)
	b := NewBeginning(database, peer.New(base, peer.Self{}), slog.New(slog.NewTextHandler(log, nil)))
	b.firstPause = time.Millisecond
	ctx, stop := context.WithTimeout(t.Context(), patience)
	defer stop()
	if err := b.Run(ctx); err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	return openBuilt(t, database)
}

func openBuilt(t testing.TB, database string) *index.Index {
	t.Helper()
	x, err := index.Open(t.Context(), database, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
	return x
}

// wantNothingElse makes sure that the index has the good item, and nothing besides.
func wantNothingElse(t *testing.T, x *index.Index) {
	t.Helper()
	db, err := sql.Open("sqlite", x.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for query, want := range map[string]string{
		"SELECT count(*) FROM items WHERE stored_files = 0 AND stored_size = 0 AND mirrored = 1": "1",
		"SELECT count(*) FROM items": "1",
		"SELECT items || ' ' || stored_nars || ' ' || stored_size FROM totals":                                                                                              "1 0 0",
		"SELECT group_concat(key) FROM (SELECT key FROM settings ORDER BY key)":                                                                                             "instance,mirror.place",
		"SELECT count(*) FROM sqlite_schema WHERE type IN ('trigger', 'view') AND name NOT IN ('narinfos_stale', 'cached_files_stale', 'narinfos_due', 'cached_files_due')": "0",
		"SELECT count(*) FROM leftovers":      "0",
		"SELECT count(*) FROM pins":           "0",
		"SELECT count(*) FROM tags":           "0",
		"SELECT count(*) FROM uses":           "0",
		"SELECT count(*) FROM cached_files":   "0",
		"SELECT count(*) FROM checksums":      "0",
		"SELECT count(*) FROM recent_changes": "0",
		"PRAGMA integrity_check":              "ok",
	} {
		var got string
		if err := db.QueryRow(query).Scan(&got); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", query, got, err, want)
		}
	}
	if x.Instance() == "stolen" {
		t.Error("the instance has the name that it was given")
	}
}

// mutate is what disks, memory and people do to a file.
func mutate(random *rand.Rand, content []byte) []byte {
	const page = 4096
	damaged := bytes.Clone(content)
	at := func() int { return random.IntN(len(damaged)) }
	switch random.IntN(5) {
	case 0:
		damaged[at()] ^= 1 << random.IntN(8)
	case 1:
		for range 1 + random.IntN(20) {
			damaged[at()] = byte(random.Uint32())
		}
	case 2:
		damaged = damaged[:at()]
	case 3: // a page in the place of another
		from, to := at()/page*page, at()/page*page
		copy(damaged[to:min(to+page, len(damaged))], damaged[from:])
	case 4: // the head of a page
		damaged[min(at()/page*page+random.IntN(12), len(damaged)-1)] = byte(random.Uint32())
	}
	return damaged
}

// mutations is how many TestMutations makes: some, or as many as NAR_HERDER_MUTATIONS
// says.
func mutations(t *testing.T) int {
	text := os.Getenv("NAR_HERDER_MUTATIONS")
	if text == "" {
		return 20
	}
	count, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return count
}

// TestMutations: a damaged index or dump with the right digest is refused, or what is made
// of it is as it should be.
func TestMutations(t *testing.T) {
	t.Parallel()
	var texts, want []string
	for n := range 60 {
		texts = append(texts, string(testInfo(n, 1, n).Text))
		want = append(want, at(n).Format(time.DateTime)+" "+texts[n])
	}
	slices.Sort(want)
	newBuilding := func() *building {
		return &building{log: slog.New(slog.DiscardHandler), doing: func(string) {}, now: time.Now(), fallback: time.Now()}
	}
	for name, test := range map[string]struct {
		content []byte
		build   func(ctx context.Context, name, downloaded string) error
	}{
		"index": {copyWith(t, "", texts...), func(ctx context.Context, name, downloaded string) error {
			return newBuilding().ofIndex(ctx, name, os.DirFS(filepath.Dir(downloaded)), filepath.Base(downloaded))
		}},
		"dump": {dumpWith(t, hostile.Instance, texts...), func(ctx context.Context, name, downloaded string) error {
			database, err := original.Open(ctx, downloaded)
			if err != nil {
				return err
			}
			defer database.Close()
			info, err := database.Info(ctx)
			if err != nil {
				return err
			}
			b := newBuilding()
			if b.count, err = database.Count(ctx); err != nil {
				return err
			}
			return b.ofDump(ctx, name, &dump{Database: database, verified: true, sum: info[original.SumKey]}, place{Since: at(1)})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			random := rand.New(rand.NewPCG(seed, 1))
			directory := t.TempDir()
			downloaded, made := filepath.Join(directory, "downloaded"), filepath.Join(directory, "made")
			refused, sum := 0, sumIn(t, test.content, downloaded)
			count := mutations(t)
			for n := range count + 1 {
				content := test.content
				if n > 0 {
					content = mutate(random, content)
				}
				if err := os.WriteFile(downloaded, content, 0o600); err != nil {
					t.Fatal(err)
				}
				ctx, stop := context.WithTimeout(t.Context(), patience)
				// Then it is as one of the original's: what is signed can be compared, and
				// nothing else.
				lostSum := name == "dump" && !bytes.Contains(content, sum)
				err := test.build(ctx, made, downloaded)
				if ctx.Err() != nil {
					t.Fatalf("mutation %d: it is stuck", n)
				}
				stop()
				if err != nil {
					refused++
					if left, err := filepath.Glob(made + "*"); n == 0 || err != nil || len(left) > 0 {
						t.Errorf("mutation %d: %v leaves %q", n, err, left)
					}
					continue
				}
				if got := listOf(t, made); !slices.Equal(got, want) && !(lostSum && isPart(got, texts)) {
					t.Errorf("mutation %d: it has %d items, which are not those that were published", n, len(got))
				}
				if err := os.Remove(made); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%d of %d were refused", refused, count)
		})
	}
}

// listOf is what a new index has.
func listOf(t testing.TB, name string) (lines []string) {
	t.Helper()
	x, err := index.Open(t.Context(), name, index.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer x.Close()
	for item, err := range x.Items(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, item.AddedAt.Format(time.DateTime)+" "+string(item.Text))
	}
	slices.Sort(lines)
	return lines
}

// sumIn is the row of a dump with its sum; nil for another file.
func sumIn(t testing.TB, content []byte, name string) []byte {
	t.Helper()
	if err := os.WriteFile(name, content, 0o600); err != nil {
		t.Fatal(err)
	}
	database, err := original.Open(t.Context(), name)
	if err != nil {
		return nil
	}
	defer database.Close()
	info, err := database.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return []byte(original.SumKey + info[original.SumKey])
}

// isPart says whether what is signed in the lines is in some of the texts.
func isPart(lines, texts []string) bool {
	for _, line := range lines {
		_, text, _ := strings.Cut(line, " StorePath")
		signed, _, _ := strings.Cut("StorePath"+text, "Signature")
		if !slices.ContainsFunc(texts, func(text string) bool { return strings.HasPrefix(text, signed+"Signature") }) {
			return false
		}
	}
	return true
}
