package index

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"nar-herder/internal/rounds"
	"nar-herder/narinfo"
)

// copyOf returns a copy of an index with items, and their texts.
func copyOf(t testing.TB, count int) (content []byte, texts []string) {
	t.Helper()
	x := openTest(t)
	for n := range count {
		info := testNarinfo(n, 1, []int{n, n / 2}, 10)
		put(t, x, info)
		texts = append(texts, string(info.Text))
	}
	name := filepath.Join(t.TempDir(), "copy")
	if _, err := x.Copy(t.Context(), name, testTime, 10); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return content, texts
}

// readForeign returns all texts of a file.
func readForeign(ctx context.Context, path string) (texts []string, err error) {
	f, err := OpenForeign(ctx, path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	for row, err := range f.Rows(ctx) {
		if err != nil {
			return nil, err
		}
		text, err := f.Text(row, nil)
		if err != nil {
			return nil, err
		}
		texts = append(texts, string(text))
	}
	return texts, nil
}

// TestForeign: only texts are read from a copy of another instance; nothing else in it is
// read or run.
func TestForeign(t *testing.T) {
	t.Parallel()
	content, texts := copyOf(t, 20)
	const endless = "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r"
	for name, test := range map[string]struct {
		script string
		want   error // nil if the texts are read
	}{
		"as it is":              {"", nil},
		"a trigger":             {"CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM settings; END", nil},
		"pins and leftovers":    {"INSERT INTO leftovers VALUES ('docs/precious.txt'); INSERT INTO pins VALUES (x'00', 1)", nil},
		"another table":         {"CREATE TABLE other (x); INSERT INTO other VALUES (1)", nil},
		"a view of that name":   {"DROP TABLE narinfos; CREATE VIEW narinfos (id, dictionary, text) AS SELECT n, 0, 'x' FROM (" + endless + ")", ErrForeign},
		"a computed column":     {"ALTER TABLE items RENAME COLUMN added_at TO x; ALTER TABLE items ADD COLUMN added_at INTEGER AS (x + 1)", ErrForeign},
		"a table is missing":    {"DROP TABLE dictionaries", ErrForeign},
		"of an unknown index":   {"DELETE FROM settings", ErrForeign},
		"without a sum":         {"DELETE FROM settings WHERE key = '" + CopySum + "'", ErrNoSum},
		"an odd number":         {"UPDATE settings SET value = '1e9' WHERE key = '" + CopyLastChange + "'", ErrForeign},
		"a row more":            {"INSERT INTO narinfos (id, hash, refs, dictionary, text) VALUES (1000, x'', x'', 0, x'00'); INSERT INTO items (id, key, added_at, stored_files, stored_size) VALUES (1000, 1, 1, 0, 0)", ErrUnsound},
		"a row less":            {"DELETE FROM narinfos WHERE id = 3", ErrUnsound},
		"another time":          {"UPDATE items SET added_at = added_at + 1000 WHERE id = 3", ErrUnsound},
		"too long a text":       {fmt.Sprintf("UPDATE narinfos SET text = zeroblob(%d) WHERE id = 3", narinfo.MaxSize+1), ErrUnsound},
		"texts of other bytes":  {"UPDATE narinfos SET text = x'00' WHERE id = 3", errAnyError},
		"many dictionaries":     {"WITH RECURSIVE r(n) AS (SELECT 100 UNION ALL SELECT n + 1 FROM r WHERE n < 200) INSERT INTO dictionaries (id, content) SELECT n, x'00' FROM r", errAnyError},
		"no version":            {"PRAGMA user_version = 0", ErrForeign},
		"a newer version":       {"PRAGMA user_version = 999", ErrNewerVersion},
		"of another program":    {"PRAGMA application_id = 1", ErrForeign},
		"a table without rowid": {"ALTER TABLE narinfos RENAME TO old; CREATE TABLE narinfos (id INTEGER PRIMARY KEY, dictionary, text) WITHOUT ROWID; INSERT INTO narinfos SELECT id, dictionary, text FROM old", errAnyError},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "copy")
			if err := os.WriteFile(path, content, 0o600); err != nil {
				t.Fatal(err)
			}
			if test.script != "" {
				c, err := connect(t.Context(), fileName(path))
				if err != nil {
					t.Fatal(err)
				}
				if err := errors.Join(c.script(test.script), c.close()); err != nil {
					t.Fatal(err)
				}
			}
			got, err := readForeign(t.Context(), path)
			switch {
			case test.want == nil && (err != nil || !slices.Equal(got, texts)):
				t.Errorf("%v, %d texts", err, len(got))
			case test.want == errAnyError && err == nil, test.want != nil && test.want != errAnyError && !errors.Is(err, test.want):
				t.Errorf("%v, want %v", err, test.want)
			}
			if left, err := filepath.Glob(path + "*"); err != nil || len(left) != 1 {
				t.Errorf("beside it are %q, %v", left, err)
			}
		})
	}
}

// TestForeignDictionaries: compressed texts are copied unchanged only if the file has no
// dictionary except the built-in one.
func TestForeignDictionaries(t *testing.T) {
	t.Parallel()
	content, _ := copyOf(t, 3)
	other := fmt.Sprintf("INSERT INTO dictionaries (id, content) VALUES (2, x'%x')", append(bytes.Clone(builtinDictionary), "StorePath"...))
	for script, want := range map[string]bool{"": true, other: false} {
		path := filepath.Join(t.TempDir(), "copy")
		write(t, path, content)
		makeDatabase(t, path, script)
		f, err := OpenForeign(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if f.onlyBuiltin != want {
			t.Errorf("with another dictionary: %v, texts are kept: %v", script != "", f.onlyBuiltin)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
}

var errAnyError = errors.New("any")

// TestForeignMutations: a damaged copy is refused, unless the damage is in data that is not
// read.
func TestForeignMutations(t *testing.T) {
	t.Parallel()
	content, texts := copyOf(t, 300)
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	path := filepath.Join(t.TempDir(), "copy")
	right, count := 0, rounds.Of(60)
	for n := range count {
		damaged := mutate(random, content)
		if err := os.WriteFile(path, damaged, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := readForeign(t.Context(), path)
		if err == nil && !slices.Equal(got, texts) {
			t.Errorf("mutation %d: %d wrong texts", n, len(got))
		}
		if err == nil {
			right++
		}
	}
	t.Logf("%d of %d can be read", right, count)
}

// FuzzForeign opens arbitrary bytes as a copy.
func FuzzForeign(f *testing.F) {
	content, _ := copyOf(f, 5)
	f.Add(content)
	random := rand.New(rand.NewPCG(1, 1))
	for range 10 {
		f.Add(mutate(random, content))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		path := filepath.Join(t.TempDir(), "copy")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		_, _ = readForeign(t.Context(), path)
	})
}

// mutate damages a file at random.
func mutate(random *rand.Rand, content []byte) []byte {
	damaged := bytes.Clone(content)
	at := func() int { return random.IntN(len(damaged)) }
	switch random.IntN(6) {
	case 0:
		damaged[at()] ^= 1 << random.IntN(8)
	case 1:
		for range 1 + random.IntN(20) {
			damaged[at()] = byte(random.Uint32())
		}
	case 2:
		damaged = damaged[:at()]
	case 3: // a page replaced by another
		page := pageSize
		from, to := at()/page*page, at()/page*page
		copy(damaged[to:min(to+page, len(damaged))], damaged[from:])
	case 4:
		from := at()
		clear(damaged[from:min(from+1+random.IntN(4096), len(damaged))])
	case 5: // the header of a page
		from := at() / pageSize * pageSize
		damaged[from+random.IntN(12)] = byte(random.Uint32())
	}
	return damaged
}
