// Package testfs gives tests file systems of their own: small ones that get
// full, and ones that can't be written. Both need the right to mount. Without
// it a test is skipped, but not in CI: there it must run.
package testfs

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Small mounts an empty file system with room for that many bytes, and returns
// its directory.
func Small(t testing.TB, size int64) string {
	t.Helper()
	directory := t.TempDir()
	err := unix.Mount("none", directory, "tmpfs", 0, fmt.Sprintf("size=%d", size))
	if err != nil {
		unavailable(t, "tmpfs", err)
	}
	unmountAtEnd(t, directory)
	return directory
}

// Freeze lets nothing be written any more to a file system that Small made.
func Freeze(t testing.TB, directory string) {
	t.Helper()
	if err := unix.Mount("none", directory, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
}

// Bind shows the directory at another place, too: as another mount, between which and
// the first nothing can be moved or linked.
func Bind(t testing.TB, directory, at string) {
	t.Helper()
	if err := unix.Mount(directory, at, "", unix.MS_BIND, ""); err != nil {
		unavailable(t, "bind mount", err)
	}
	unmountAtEnd(t, at)
}

// ReadOnly shows the directory at another place where nothing can be written,
// not even by root, and returns that.
func ReadOnly(t testing.TB, directory string) string {
	t.Helper()
	view := t.TempDir()
	Bind(t, directory, view)
	if err := unix.Mount("none", view, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		unavailable(t, "read-only bind mount", err)
	}
	return view
}

// Fill takes all the room that is left where the directory is. The function
// that it returns gives it back.
func Fill(t testing.TB, directory string) (free func()) {
	t.Helper()
	file, err := os.CreateTemp(directory, "filler-")
	if err != nil {
		t.Fatal(err)
	}
	for size := 1 << 20; size > 0; {
		if _, err := file.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := os.Remove(file.Name()); err != nil {
			t.Error(err)
		}
	}
}

func unmountAtEnd(t testing.TB, directory string) {
	t.Cleanup(func() {
		if err := unix.Unmount(directory, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", directory, err)
		}
	})
}

// unavailable ends a test that can't mount.
func unavailable(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: %v: in CI, tests run with the right to mount", what, err)
	}
	t.Skipf("%s: %v: run the tests as root for this one", what, err)
}
