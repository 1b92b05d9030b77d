// Package disk contains tools for files: it reserves disk space for the database, writes large
// files out early, renames without overwriting, and shares files with a group.
package disk

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrNoRoom means that a file was not written, or incompletely, as the disk would become full.
var ErrNoRoom = errors.New("not enough space on the disk")

// Look returns how many bytes are free for this process on the disk of a directory, and the
// size of the disk.
type Look func(directory string) (free, size int64, err error)

// Room is the [Look] of the system.
func Room(directory string) (free, size int64, err error) {
	var system unix.Statfs_t
	if err := unix.Statfs(directory, &system); err != nil {
		return 0, 0, fmt.Errorf("get the free space of %s: %w", directory, err)
	}
	return int64(system.Bavail) * system.Bsize, int64(system.Blocks) * system.Bsize, nil
}

// mostReserve is the largest reserve, which lets a database grow for a long time.
const mostReserve = 1 << 30

// Reserve returns how many bytes of a disk stay free for the database: a twentieth of its
// size, up to 1 GiB.
func Reserve(size int64) int64 { return min(mostReserve, size/20) }

// Check returns [ErrNoRoom] if less than the reserve would be free after writing that many
// bytes.
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
		return fmt.Errorf("%w of %s: %d MiB needed, %d MiB free, of which %d MiB are reserved for the database: free space there, or move the database to a larger disk",
			ErrNoRoom, directory, need/mega, free/mega, keep/mega)
	}
	return nil
}

// IsFull reports whether an error means that the disk is full.
func IsFull(err error) bool {
	return errors.Is(err, ErrNoRoom) || errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

// Writer writes to W while there is enough space. Its errors are [ErrNoRoom], and those of W.
type Writer struct {
	W io.Writer
	// Directory is the directory of the file, and Look returns its free space; nil is
	// [Room].
	Directory string
	Look      Look

	left int64 // bytes until the next Check
}

// lookEvery is how many bytes are written before the disk is checked again: far less than the
// reserve, as others write there as well.
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
		err = fmt.Errorf("%w of %s: %w: free space there, or move the database to a larger disk", ErrNoRoom, w.Directory, err)
	}
	return n, err
}
