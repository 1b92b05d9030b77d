package directory

import "nar-herder/internal/disk"

// FreeSpace implements [storage.FreeSpacer].
func (d *Directory) FreeSpace() (free, size int64, err error) {
	// What its name leads to may be another file system, when it was unmounted.
	if err := d.inPlace(); err != nil {
		return 0, 0, err
	}
	return disk.Room(d.name)
}
