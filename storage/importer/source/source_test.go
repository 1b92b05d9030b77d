package source

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nar-herder/storage/bytestore"
)

// laid makes a directory with a nar and other files, and a file outside of it.
func laid(t *testing.T) (dir string) {
	t.Helper()
	top := t.TempDir()
	dir = filepath.Join(top, "dir")
	err := errors.Join(os.MkdirAll(dir+"/nar/directory", 0o755),
		os.WriteFile(dir+"/nar/item", []byte("content"), 0o644), os.WriteFile(top+"/outside", []byte("content"), 0o644),
		os.Symlink("item", dir+"/nar/link"), os.Symlink("../../outside", dir+"/nar/out"), os.Symlink("gone", dir+"/nar/dangling"),
		unix.Mkfifo(dir+"/nar/pipe", 0o644))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestOpen(t *testing.T) {
	t.Parallel()
	dir := laid(t)
	for _, test := range []struct {
		name   string
		want   int64
		isLink bool
		err    error  // nil for any, if says is set
		says   string // "" for success
	}{
		{name: "nar/item", want: 7},
		{name: "nar/item", want: -1},
		{name: "nar/link", want: 7, isLink: true},
		{name: "nar/item", want: 8, err: bytestore.ErrWrongSize, says: "has 7 bytes, the narinfo says 8"},
		{name: "nar/gone", want: 7, err: fs.ErrNotExist, says: "gone"},
		{name: "gone/item", want: 7, err: fs.ErrNotExist, says: "gone"},
		{name: "nar/dangling", want: 7, err: fs.ErrNotExist, says: "dangling"},
		{name: "nar/out", want: 7, says: "escapes"},
		{name: "../outside", want: 7, says: "escapes"},
		{name: "nar/pipe", want: -1, says: "not a regular file"},
		{name: "nar/directory", want: -1, says: "not a regular file"},
	} {
		file, err := Place{dir, test.name}.Open(test.want)
		if test.says == "" {
			if err != nil || file.Size != 7 || file.IsLink != test.isLink || file.IsInUse {
				t.Errorf("%s: %+v, %v", test.name, file, err)
			}
		} else if err == nil || test.err != nil && !errors.Is(err, test.err) || !strings.Contains(err.Error(), test.says) {
			t.Errorf("%s: %v, want %q", test.name, err, test.says)
		}
		if err == nil {
			file.Close()
		}
	}
	if _, err := (Place{dir + "/gone", "nar/item"}).Open(7); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without the directory: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, bytestore.OwnerName), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	file, err := Place{dir, "nar/item"}.Open(7)
	if err != nil || !file.IsInUse {
		t.Errorf("in a storage: %+v, %v", file, err)
	}
	file.Close()
}

func TestRemove(t *testing.T) {
	t.Parallel()
	dir := laid(t)
	for _, name := range []string{"nar/item", "nar/item", "gone/item", "nar/out"} { // the link, not its target
		if err := (Place{dir, name}).Remove(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (Place{dir, "../outside"}).Remove(); err == nil {
		t.Error("a file outside of the directory was removed")
	}
	if _, err := os.Stat(filepath.Join(dir, "../outside")); err != nil {
		t.Error(err)
	}
}
