package directory

import (
	"errors"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
)

// FreeSpace implements [bytestore.Store]. The error is [errors.ErrUnsupported] if the
// file system reports only zeros, as some FUSE file systems do.
func (d *Directory) FreeSpace() (free, size int64, err error) {
	// After an unmount, the path is on another file system.
	if err := d.inPlace(); err != nil {
		return 0, 0, err
	}
	free, size, err = disk.Room(d.name)
	if err == nil && size == 0 {
		err = errors.ErrUnsupported
	}
	return free, size, err
}

// isFull reports whether a file system is full. If it reports only zeros, that is unknown.
func isFull(system *unix.Statfs_t) bool {
	return system.Blocks > 0 && system.Bavail == 0 || system.Files > 0 && system.Ffree == 0
}
