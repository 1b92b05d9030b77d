// Package disk has what those who write large files beside a database share: to
// leave room on its disk, to have bytes written out as they come, to give a finished
// file a name that no other has, and to share files with a group.
package disk

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoRoom says that a file is not written, or not further, as the disk would
// become full.
var ErrNoRoom = errors.New("there is too little room on the disk")

// Look finds out how many bytes are free for this process on the disk of a
// directory, and how many that has in all.
type Look func(directory string) (free, size int64, err error)

// Room is the [Look] of the system.
func Room(directory string) (free, size int64, err error) {
	var system unix.Statfs_t
	if err := unix.Statfs(directory, &system); err != nil {
		return 0, 0, fmt.Errorf("look how much room there is in %s: %w", directory, err)
	}
	return int64(system.Bavail) * system.Bsize, int64(system.Blocks) * system.Bsize, nil
}

// mostReserve is enough for a database to go on with for long.
const mostReserve = 1 << 30

// Reserve is what stays free of a disk with so many bytes for the database: a
// twentieth, up to 1 GiB.
func Reserve(size int64) int64 { return min(mostReserve, size/20) }

// Check refuses, with [ErrNoRoom], to write so many bytes where the disk would have
// less than the reserve free then.
func (look Look) Check(directory string, need int64) error {
	if look == nil {
		look = Room
	}
	free, size, err := look(directory)
	if err != nil {
		return err
	}
	if keep := Reserve(size); free-need < keep {
		const mega = 1 << 20
		return fmt.Errorf("%w of %s: %d MiB are to be written, %d MiB are free, and %d MiB of them stay so for the database: make room there, or have the database on a larger disk",
			ErrNoRoom, directory, need/mega, free/mega, keep/mega)
	}
	return nil
}

// IsFull says whether an error is that nothing more can be written for now.
func IsFull(err error) bool {
	return errors.Is(err, ErrNoRoom) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Writer passes bytes on, as long as there is room for them. Its errors are
// [ErrNoRoom], and those of what it writes to.
type Writer struct {
	W io.Writer
	// Directory is that of the file, and Look finds out about its disk; nil is
	// [Room].
	Directory string
	Look      Look

	left int64 // bytes before it looks again
}

// lookEvery is how many bytes are written between two looks at the disk: far less
// than the reserve, as others write there as well.
const lookEvery = 16 << 20

func (w *Writer) Write(p []byte) (int, error) {
	if w.left -= int64(len(p)); w.left < 0 {
		if err := w.Look.Check(w.Directory, int64(len(p))); err != nil {
			return 0, err
		}
		w.left = lookEvery
	}
	n, err := w.W.Write(p)
	if IsFull(err) {
		err = fmt.Errorf("%w of %s: %w: make room there, or have the database on a larger disk", ErrNoRoom, w.Directory, err)
	}
	return n, err
}
