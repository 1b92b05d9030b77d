package disk

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestInherit: a file takes the group and its permissions from a directory that the
// group may write to, and from no other.
func TestInherit(t *testing.T) {
	t.Parallel()
	const other = 65534
	group := os.Getgid()
	if os.Getuid() == 0 {
		group = other
	}
	for _, test := range []struct {
		directory, want os.FileMode // of the directory, and of a file of 0600 that the group may write
		inherits        bool
	}{
		{0o775, 0o660, true}, {0o2775, 0o660, true}, {0o770, 0o660, true}, {0o730, 0o620, true},
		{0o755, 0o600, false}, {0o700, 0o600, false}, {0o777, 0o600, false}, {0o1777, 0o600, false},
	} {
		t.Run(fmt.Sprintf("%#o", test.directory), func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(t.TempDir(), "parent")
			file, link, second, below := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "second"), filepath.Join(dir, "a/b")
			must(t, os.Mkdir(dir, 0o755))
			for _, name := range []string{file, second, filepath.Join(t.TempDir(), "secret")} {
				must(t, os.WriteFile(name, nil, 0o600))
				if filepath.Base(name) == "secret" {
					must(t, os.Symlink(name, link))
				}
			}
			must(t, os.Link(second, second+"-2"))
			must(t, os.Chown(dir, -1, group))
			must(t, syscall.Chmod(dir, uint32(test.directory))) // with the bits above 0777
			for _, name := range []string{file, link, second} {
				Inherit(name, GroupWrites)
			}
			must(t, MkdirAll(below, 0o700))
			must(t, MkdirAll(below, 0o700)) // again
			wantGroup := func(name string, mode fs.FileMode, inherited bool) {
				t.Helper()
				info, err := os.Stat(name)
				must(t, err)
				gid := os.Getgid()
				if inherited {
					gid = group
				}
				if got := int(info.Sys().(*syscall.Stat_t).Gid); info.Mode().Perm() != mode || got != gid {
					t.Errorf("%s has mode %#o and group %d, want %#o and %d", name, info.Mode().Perm(), got, mode, gid)
				}
			}
			wantGroup(file, test.want, test.inherits)
			wantGroup(link, 0o600, false) // what it leads to
			wantGroup(second, 0o600, false)
			directory := 0o700 | test.directory&0o070
			if !test.inherits {
				directory = 0o700
			}
			wantGroup(filepath.Dir(below), directory, test.inherits)
			wantGroup(below, directory, test.inherits)
			if err := MkdirAll(filepath.Join(file, "x"), 0o700); err == nil {
				t.Error("a directory was made in a file")
			}
		})
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
