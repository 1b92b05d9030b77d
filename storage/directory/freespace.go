package directory

import (
	"errors"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
)

// FreeSpace implements [bytestore.Store]. The error is [errors.ErrUnsupported] if the
// file system reports nothing but zeros, as some do that use FUSE.
func (d *Directory) FreeSpace() (free, size int64, err error) {
	// What its name leads to may be another file system, when it was unmounted.
	if err := d.inPlace(); err != nil {
		return 0, 0, err
	}
	free, size, err = disk.Room(d.name)
	if err == nil && size == 0 {
		err = errors.ErrUnsupported
	}
	return free, size, err
}

// isFull reports whether a file system has no room. Where it reports nothing but zeros,
// that is unknown.
func isFull(system *unix.Statfs_t) bool {
	return system.Blocks > 0 && system.Bavail == 0 || system.Files > 0 && system.Ffree == 0
}
