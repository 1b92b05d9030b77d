package directory

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

// TestIsFull: a file system that reports only zeros, such as some FUSE file systems, is not
// full.
func TestIsFull(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		system unix.Statfs_t
		full   bool
	}{
		{unix.Statfs_t{}, false},
		{unix.Statfs_t{Blocks: 10, Bavail: 1}, false},
		{unix.Statfs_t{Blocks: 10}, true},
		{unix.Statfs_t{Blocks: 10, Bavail: 1, Files: 5, Ffree: 1}, false},
		{unix.Statfs_t{Blocks: 10, Bavail: 1, Files: 5}, true},
	} {
		if got := isFull(&test.system); got != test.full {
			t.Errorf("%+v: %t, want %t", test.system, got, test.full)
		}
	}
}

// TestNoFreeSpace: the size of such a file system is unknown.
func TestNoFreeSpace(t *testing.T) {
	t.Parallel()
	var system unix.Statfs_t
	if err := unix.Statfs("/proc/self", &system); err != nil || system.Blocks != 0 {
		t.Skip("/proc reports blocks")
	}
	if free, size, err := open(t, "/proc/self").FreeSpace(); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("%d bytes of %d are free, %v", free, size, err)
	}
}
