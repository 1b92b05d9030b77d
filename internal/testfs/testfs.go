// Package testfs mounts file systems for tests: small ones that get full, and read-only ones.
// Both need the right to mount. Without it a test is skipped, but not in CI: there it must run.
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

// Freeze makes a file system that Small made read-only.
func Freeze(t testing.TB, directory string) {
	t.Helper()
	if err := unix.Mount("none", directory, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
}

// Bind mounts the directory at another place as well: files can't be moved or linked between
// the two mounts.
func Bind(t testing.TB, directory, at string) {
	t.Helper()
	if err := unix.Mount(directory, at, "", unix.MS_BIND, ""); err != nil {
		unavailable(t, "bind mount", err)
	}
	unmountAtEnd(t, at)
}

// ReadOnly mounts the directory read-only at another place, which it returns. Not even root
// can write there.
func ReadOnly(t testing.TB, directory string) string {
	t.Helper()
	view := t.TempDir()
	Bind(t, directory, view)
	if err := unix.Mount("none", view, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		unavailable(t, "read-only bind mount", err)
	}
	return view
}

// Fill fills the file system of the directory. The function that it returns frees the space.
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
