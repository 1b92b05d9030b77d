package directory

import (
	"errors"
	"io/fs"
	"nar-herder/storage/bytestore"
	"os"
	"path"
	"syscall"

	"golang.org/x/sys/unix"
)

// openForReading opens a file below the directory.
func (d *Directory) openForReading(name string) (*os.File, error) {
	// Without O_NONBLOCK, opening a named pipe would block forever.
	const flags = os.O_RDONLY | syscall.O_NONBLOCK
	fd, err := d.openBeneath(name, flags)
	if err == errNoOpenat2 {
		return d.root.OpenFile(name, flags, 0)
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// stat describes the file of a name.
func (d *Directory) stat(name string) (fs.FileInfo, error) {
	fd, err := d.openBeneath(name, unix.O_PATH)
	if err == errNoOpenat2 {
		return d.root.Stat(name)
	}
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	return file.Stat()
}

// unlink removes a file that is not a directory.
func (d *Directory) unlink(name string) error {
	fd, err := d.openBeneath(path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
	if err == errNoOpenat2 {
		info, err := d.root.Lstat(name)
		if err == nil && info.IsDir() {
			return unix.EISDIR
		}
		if err == nil {
			err = d.root.Remove(name)
		}
		return err
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for {
		if err := unix.Unlinkat(fd, path.Base(name), 0); err != unix.EINTR {
			return err
		}
	}
}

// errNoOpenat2 means that the kernel is older than 5.6, or that a sandbox rejects the call.
var errNoOpenat2 = errors.New("openat2 is not available")

// openBeneath opens a file below the directory. [os.Root] does the same with a call for
// each directory, and takes five times as long.
func (d *Directory) openBeneath(name string, flags int) (fd int, err error) {
	for !d.noOpenat2.Load() {
		fd, err := unix.Openat2(int(d.handle.Fd()), name, &unix.OpenHow{
			Flags: uint64(flags | unix.O_CLOEXEC), Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
		})
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR, unix.EAGAIN:
			// EAGAIN: a directory was renamed during the look-up.
		case unix.EXDEV:
			return -1, bytestore.ErrOutside
		case unix.ENOSYS, unix.EPERM:
			d.noOpenat2.Store(true)
		default:
			return -1, err
		}
	}
	return -1, errNoOpenat2
}
