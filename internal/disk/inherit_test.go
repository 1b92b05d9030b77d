package disk

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInherit: a file gets the group and its permissions if the group may write to the
// directory.
func TestInherit(t *testing.T) {
	t.Parallel()
	const other = 65534
	group := os.Getgid()
	if os.Getuid() == 0 {
		group = other
	}
	for _, test := range []struct {
		directory, want os.FileMode // of the directory, and of a file of 0600 that the group may write to
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
			wantGroup(link, 0o600, false) // the target
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

// TestMkdirAllConcurrently: a directory has all its permissions when another process can find it.
func TestMkdirAllConcurrently(t *testing.T) {
	t.Parallel()
	for range 100 {
		dir := t.TempDir()
		must(t, os.Chmod(dir, 0o770))
		root, err := os.OpenRoot(dir)
		must(t, err)
		var all sync.WaitGroup
		for n := range 4 {
			all.Go(func() {
				var err error
				if n%2 == 0 {
					err = MkdirAll(filepath.Join(dir, "a/b"), 0o700)
				} else {
					err = MkdirAllIn(root, "a/b", 0o700, nil)
				}
				info, statErr := os.Stat(filepath.Join(dir, "a/b"))
				if err != nil || statErr != nil || info.Mode().Perm() != 0o770 {
					t.Errorf("%v, %v, %v", err, statErr, info)
				}
			})
		}
		all.Wait()
		must(t, root.Close())
		names, err := filepath.Glob(filepath.Join(dir, "*"))
		hidden, hiddenErr := filepath.Glob(filepath.Join(dir, ".*"))
		must(t, errors.Join(err, hiddenErr))
		if len(names) != 1 || len(hidden) > 0 || t.Failed() {
			t.Fatalf("%v, %v", names, hidden)
		}
	}
}

// TestInheritACL: the group permissions of a directory with an access control list are its
// mask, not those of the group.
func TestInheritACL(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	acl := binary.LittleEndian.AppendUint32(nil, 2) // the version
	for _, entry := range []struct {
		tag, permissions uint16
		id               uint32
	}{
		{0x01, 7, 0xffffffff}, {0x02, 7, 1}, {0x04, 5, 0xffffffff}, {0x10, 7, 0xffffffff}, {0x20, 5, 0xffffffff}, // owner, user 1, group, mask, others
	} {
		acl = binary.LittleEndian.AppendUint16(acl, entry.tag)
		acl = binary.LittleEndian.AppendUint16(acl, entry.permissions)
		acl = binary.LittleEndian.AppendUint32(acl, entry.id)
	}
	if err := unix.Setxattr(dir, aclAttribute, acl, 0); err != nil {
		t.Skip("access control lists aren't supported:", err)
	}
	info, err := os.Stat(dir)
	must(t, err)
	if info.Mode().Perm() != 0o775 {
		t.Fatalf("the mode is %#o: the list has no effect", info.Mode().Perm())
	}
	Inherit(file, GroupWrites)
	if info, err = os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file has mode %#o, %v", info.Mode().Perm(), err)
	}
}

// TestOpenFile: only a new file inherits.
func TestOpenFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o770))
	created, existing, link := filepath.Join(dir, "new"), filepath.Join(dir, "existing"), filepath.Join(dir, "link")
	must(t, os.WriteFile(existing, []byte("text"), 0o600))
	must(t, os.Symlink("target", link))
	for name, want := range map[string]fs.FileMode{created: 0o660, existing: 0o600, link: 0o600} {
		file, err := OpenFile(name, os.O_RDWR, 0o600, GroupWrites)
		must(t, err)
		info, err := file.Stat()
		must(t, errors.Join(err, file.Close()))
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %#o, want %#o", name, info.Mode().Perm(), want)
		}
	}
	if text, err := os.ReadFile(existing); string(text) != "text" {
		t.Errorf("%q, %v", text, err)
	}
	if _, err := OpenFile(link, os.O_RDWR|unix.O_NOFOLLOW, 0o600, GroupWrites); err == nil {
		t.Error("a link was followed")
	}
	if _, err := OpenFile(filepath.Join(dir, "missing/file"), os.O_RDWR, 0o600, GroupWrites); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
