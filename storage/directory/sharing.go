package directory

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
)

// A stored file must not change, so no other user may be able to write to it: neither by
// its mode, nor as its owner, nor through an open descriptor.

// writableByOthers are the permissions that a shared file must not have. Access control
// lists can't grant more than the group's permissions.
const writableByOthers fs.FileMode = 0o022

// takeOver ensures that only this user can write to a file that the store will share. If
// that is impossible, it returns an error, and the file must be copied. A file of the spool
// may be open for writing by this process.
func takeOver(file *os.File, info fs.FileInfo, inSpool bool) error {
	stat, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || stat.Nlink != 1:
		return errors.New("it has other names, through which it may be changed")
	case int(stat.Uid) != os.Geteuid():
		return fmt.Errorf("it belongs to user %d, who may write to it", stat.Uid)
	case info.Mode()&0o044 == 0:
		// The server may run as another user than an import.
		return errors.New("only its owner may read it")
	}
	if info.Mode()&writableByOthers != 0 {
		if err := file.Chmod(info.Mode() &^ writableByOthers); err != nil {
			return err
		}
	}
	if !inSpool && isBeingWritten(file) {
		return errors.New("a process has it open for writing")
	}
	return nil
}

// checkShareable is takeOver for a file with an owner who is trusted, which must not be changed.
func checkShareable(file *os.File, info fs.FileInfo) error {
	switch {
	case info.Mode()&writableByOthers != 0:
		return fmt.Errorf("its mode %#o lets other users than its owner write to it", info.Mode().Perm())
	case info.Mode()&0o004 == 0:
		// The server may run as another user than an import.
		return fmt.Errorf("its mode %#o doesn't let everybody read it", info.Mode().Perm())
	case isBeingWritten(file):
		return errors.New("a process has it open for writing")
	}
	return nil
}

// isBeingWritten reports whether a process has the file open for writing, or mapped; false
// if the file system doesn't support leases. On NFSv4 and SMB it is mostly true, as a lease
// needs a delegation from the server: then the file is copied. The file must be open for
// reading only.
func isBeingWritten(file *os.File) bool {
	// The kernel grants a read lease only if there are no writers.
	_, err := unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, _ = unix.FcntlInt(file.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return errors.Is(err, unix.EAGAIN)
}

// MayRemove implements [bytestore.Store]: this user must be able to write to the file's
// directory.
func (d *Directory) MayRemove(name string) error {
	parent := path.Dir(name)
	file, err := d.root.Open(parent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the file doesn't exist
	} else if err != nil {
		return d.explain("look for", parent, err)
	}
	defer file.Close()
	if err := unix.Faccessat(int(file.Fd()), ".", unix.W_OK|unix.X_OK, unix.AT_EACCESS); err != nil {
		return fmt.Errorf("remove %s in storage %s: %w", name, d.name, cmp.Or(disk.Unwritable(filepath.Join(d.name, parent)), err))
	}
	return nil
}

// protect flushes a file that was added without Stage, and ensures that only the storage's
// users can write to it. Users with write access to the directories are trusted. If the
// file has a second name, which may be outside of the storage, it must belong to the owner
// of its directory or of the storage, unless its owner is trusted.
func (d *Directory) protect(name string, trusting bool) error {
	file, stat, err := d.open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	isOwn := int(stat.Uid) == os.Geteuid()
	if isOwn && stat.Mode&uint32(writableByOthers) != 0 {
		if err := file.Chmod(fs.FileMode(stat.Mode) & fs.ModePerm &^ writableByOthers); err != nil {
			return d.explain("remove the write permission of others from", name, err)
		}
	} else if !isOwn && (stat.Mode&0o002 != 0 || stat.Nlink > 1 && !(trusting && stat.Mode&0o020 == 0) && !d.ownsDirectory(stat.Uid, path.Dir(name))) {
		return fmt.Errorf("%s in storage %s is writable for users without access to the storage: it belongs to user %d, with mode %#o and %d names: replace it with a copy, or make this user (%d) its owner",
			name, d.name, stat.Uid, stat.Mode&0o777, stat.Nlink, os.Geteuid())
	}
	disk.InheritIn(d.root, name, disk.GroupReads)
	if err := file.Sync(); err != nil {
		return d.explain("flush", name, err)
	}
	return nil
}

// ownsDirectory reports whether a user owns the directory of a file or, if this process is
// root, that of the storage.
func (d *Directory) ownsDirectory(uid uint32, parent string) bool {
	owns := func(name string) bool {
		info, err := d.root.Stat(name)
		if err != nil {
			return false
		}
		stat, ok := info.Sys().(*syscall.Stat_t)
		return ok && stat.Uid == uid
	}
	return owns(parent) || os.Geteuid() == 0 && owns(".")
}
