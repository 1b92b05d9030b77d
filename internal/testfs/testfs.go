// Package testfs mounts small and read-only file systems for tests. If mounting isn't
// permitted, it skips the test, or fails it in CI.
package testfs

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Small mounts an empty file system of that size, and returns its directory.
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

// Freeze makes a file system of Small read-only.
func Freeze(t testing.TB, directory string) {
	t.Helper()
	if err := unix.Mount("none", directory, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
}

// Bind mounts the directory at a second path: files can't be moved or linked between the two
// mounts.
func Bind(t testing.TB, directory, at string) {
	t.Helper()
	if err := unix.Mount(directory, at, "", unix.MS_BIND, ""); err != nil {
		unavailable(t, "bind mount", err)
	}
	unmountAtEnd(t, at)
}

// ReadOnly mounts the directory read-only at another path, and returns the path. Not even root
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

// Fill fills the file system of the directory. free frees the space.
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

// unavailable skips a test that can't mount, or fails it in CI.
func unavailable(t testing.TB, what string, err error) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s: %v: in CI, tests must be allowed to mount", what, err)
	}
	t.Skipf("%s: %v: run the tests as root for this one", what, err)
}
