package directory

import (
	"os"
	"path/filepath"
	"testing"
)

// TestFlushOfSecondName: root may import a file of the storage's user with a second name, as
// in a backup with hard links, but not another user's.
func TestFlushOfSecondName(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("this test must run as root")
	}
	const user, other = 65533, 65534
	for _, test := range []struct {
		name              string
		top, parent, file int
		isTrusted         bool
	}{
		{"the storage's user", user, user, user, true},
		{"the owner of the directory", 0, user, user, true},
		{"the owner of the storage", user, 0, user, true},
		{"another user", user, user, other, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			top := t.TempDir()
			parent := filepath.Join(top, "nar")
			file := filepath.Join(parent, "a")
			if err := os.Mkdir(parent, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte("content"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Link(file, filepath.Join(top, "backup")); err != nil {
				t.Fatal(err)
			}
			for name, uid := range map[string]int{top: test.top, parent: test.parent, file: test.file} {
				if err := os.Chown(name, uid, uid); err != nil {
					t.Fatal(err)
				}
			}
			d, err := Open(top)
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			if err := d.Flush(t.Context(), "nar/a"); (err == nil) != test.isTrusted {
				t.Errorf("flush: %v", err)
			}
		})
	}
}
