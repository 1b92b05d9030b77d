package index

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestCheckCopy: what has the head of an index may be something else all the same.
func TestCheckCopy(t *testing.T) {
	t.Parallel()
	x := openTest(t)
	put(t, x, testNarinfo(1, 1, nil, 1))
	good := filepath.Join(t.TempDir(), "copy")
	if _, err := x.Copy(t.Context(), good, testTime, 10); err != nil {
		t.Fatal(err)
	}
	if err := CheckCopy(t.Context(), good); err != nil {
		t.Errorf("a copy: %v", err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := filepath.Glob(good + "*"); err != nil || len(left) != 1 {
		t.Errorf("beside it are %q, %v", left, err)
	}
	for name, script := range map[string]string{
		"a table is missing":  "DROP TABLE uses",
		"a trigger":           "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM settings; END",
		"another column":      "ALTER TABLE uses ADD COLUMN other TEXT",
		"of an unknown index": "DELETE FROM settings",
		"an older version":    "PRAGMA user_version = 1",
		"nothing":             "PRAGMA user_version = 0",
		"a newer version":     "PRAGMA user_version = 999",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "copy")
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			c, err := connect(t.Context(), fileName(path))
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(c.script(script), c.close()); err != nil {
				t.Fatal(err)
			}
			err = CheckCopy(t.Context(), path)
			want := ErrForeign
			if name == "a newer version" {
				want = ErrNewerVersion
			}
			if !errors.Is(err, want) {
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
}
