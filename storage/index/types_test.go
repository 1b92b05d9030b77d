package index

import (
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"
)

// loosen runs a script in a closed database as if a table were not STRICT: a flipped bit in
// a page can change the type of a value.
func loosen(t testing.TB, path, table, script string) {
	t.Helper()
	const change = "PRAGMA writable_schema = on; UPDATE sqlite_schema SET sql = replace(sql, '%s', '%s') WHERE name = '%s'"
	makeDatabase(t, path, fmt.Sprintf(change, ") STRICT", ") /*RICT*/", table))
	makeDatabase(t, path, script)
	makeDatabase(t, path, fmt.Sprintf(change, ") /*RICT*/", ") STRICT", table))
}

// TestOtherTypes: a value of a wrong type is an error, or is skipped.
func TestOtherTypes(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		table, column string
		use           func(x *Index) error
		want          error
	}{
		{"narinfos", "dictionary", func(x *Index) error {
			got, err := x.Copy(t.Context(), filepath.Join(t.TempDir(), "copy"), testTime, 0)
			if err == nil && len(got.Damaged) == 1 && got.Items == 0 {
				return got.Damaged[0]
			}
			return err
		}, ErrDamaged},
		{"tags", "value", func(x *Index) error {
			_, err := x.Tags(t.Context(), testPath(1).Hash)
			return err
		}, ErrDamaged},
		{"referrers", "target", func(x *Index) error {
			_, err := x.Referrers(t.Context(), testPath(2).Hash)
			return err
		}, nil},
		{"cached_files", "item", func(x *Index) error {
			for _, err := range x.AllCached(t.Context(), "zstd") {
				if err != nil {
					return err
				}
			}
			return nil
		}, nil},
		{"leftovers", "name", func(x *Index) error {
			_, err := x.PendingDeletes(t.Context(), "", 10)
			return err
		}, nil},
	} {
		t.Run(test.table, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			x, err := Open(t.Context(), path, Options{})
			if err != nil {
				t.Fatal(err)
			}
			put(t, x, testNarinfo(1, 1, []int{2}, 10))
			update(t, x, func(tx *Tx) error {
				return errors.Join(tx.AddTags(testPath(1).Hash, []Tag{{"a", "b"}}), tx.AddPendingDeletes([]string{"some"}), tx.PutCached(CachedFile{Hash: testPath(1).Hash, Type: "zstd", Size: 1, LastUsed: time.Now()}))
			})
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			loosen(t, path, test.table, "UPDATE "+test.table+" SET "+test.column+" = x'00'")
			if err := test.use(openAt(t, path)); !errors.Is(err, test.want) {
				t.Errorf("%v, want %v", err, test.want)
			}
		})
	}
}
