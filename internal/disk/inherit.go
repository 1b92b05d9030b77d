package disk

import (
	"crypto/rand"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
)

// Group permissions for Inherit.
const (
	GroupReads  fs.FileMode = 0o040
	GroupWrites fs.FileMode = 0o060
	GroupEnters fs.FileMode = 0o070 // of a directory
)

// Inherit shares a new file or directory with the users of its parent directory, regardless
// of the umask. If the group may write to the parent, the file gets the parent's group, and
// those of the given permissions that the parent gives the group. Nothing is shared in a
// directory that all users may write to, such as /tmp, or with an access control list, as its
// group permissions are only an upper limit.
//
// Inherit does nothing if this process may not change the group, or if the file belongs to
// another user or has several names, as another user may have put it there. It doesn't open the
// file, as closing it would release this process's locks on it.
func Inherit(name string, group fs.FileMode) {
	parent, err := openParent(name)
	if err != nil {
		return
	}
	defer unix.Close(parent)
	inheritAt(parent, filepath.Base(name), group)
}

// InheritIn is Inherit for a name below a root.
func InheritIn(root *os.Root, name string, group fs.FileMode) {
	parent, err := root.Open(path.Dir(name))
	if err != nil {
		return
	}
	defer parent.Close()
	inheritAt(int(parent.Fd()), path.Base(name), group)
}

func inheritAt(parent int, base string, group fs.FileMode) {
	above, shares := sharing(parent)
	if !shares {
		return
	}
	made, err := unix.Openat(parent, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(made)
	inherit(above, made, group, 1)
}

// InheritFrom is Inherit for an open file, which may have one other name.
func InheritFrom(parent, made *os.File, group fs.FileMode) {
	inheritFrom(int(parent.Fd()), made, group)
}

func inheritFrom(parent int, made *os.File, group fs.FileMode) {
	if above, shares := sharing(parent); shares {
		inherit(above, int(made.Fd()), group, 2)
	}
}

// OpenFile is [os.OpenFile] with O_CREATE, and with Inherit for a file that it creates. It
// doesn't change an existing file, which another user may have moved there.
func OpenFile(name string, flag int, permissions, group fs.FileMode) (*os.File, error) {
	file, err := os.OpenFile(name, flag|os.O_CREATE|os.O_EXCL, permissions)
	if errors.Is(err, fs.ErrExist) {
		return os.OpenFile(name, flag|os.O_CREATE, permissions)
	}
	if err != nil {
		return nil, err
	}
	if parent, err := openParent(name); err == nil {
		inheritFrom(parent, file, group)
		unix.Close(parent)
	}
	return file, nil
}

// openParent opens the directory of a file, even without the permission to list it.
func openParent(name string) (int, error) {
	return unix.Open(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// sharing describes a directory, and reports whether it is shared with a group.
func sharing(directory int) (stat unix.Stat_t, shares bool) {
	if unix.Fstat(directory, &stat) != nil || stat.Mode&0o022 != 0o020 {
		return stat, false
	}
	// By name, as the descriptor may be O_PATH.
	_, err := unix.Getxattr(descriptorName(directory), aclAttribute, nil)
	return stat, err == unix.ENODATA || err == unix.ENOTSUP
}

// aclAttribute is the extended attribute of a directory with an access control list; see
// acl(5).
const aclAttribute = "system.posix_acl_access"

func descriptorName(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// inherit shares a file with at most that many links.
func inherit(above unix.Stat_t, made int, group fs.FileMode, most uint64) {
	var now unix.Stat_t
	if unix.Fstat(made, &now) != nil || int(now.Uid) != os.Geteuid() {
		return
	}
	kind := now.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && (kind != unix.S_IFREG || uint64(now.Nlink) > most) {
		return
	}
	if now.Gid != above.Gid && unix.Fchownat(made, "", -1, int(above.Gid), unix.AT_EMPTY_PATH) != nil {
		return // another group must not get the permissions
	}
	if want := now.Mode&0o7777 | above.Mode&uint32(group); want != now.Mode&0o7777 {
		// fchmod(2) doesn't accept an O_PATH descriptor; see open(2).
		_ = unix.Chmod(descriptorName(made), want)
	}
}

// MkdirAll is [os.MkdirAll], in which each new directory is shared as by Inherit.
func MkdirAll(name string, permissions fs.FileMode) error {
	name = filepath.Clean(name)
	if info, err := os.Stat(name); err == nil && info.IsDir() {
		return nil
	}
	if above := filepath.Dir(name); above != name {
		if err := MkdirAll(above, permissions); err != nil {
			return err
		}
	}
	parent, err := openParent(name)
	if err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	defer unix.Close(parent)
	switch err := mkdirAt(parent, filepath.Base(name), permissions); {
	case errors.Is(err, fs.ErrExist):
		return os.MkdirAll(name, permissions) // created concurrently, or not a directory
	case err != nil:
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// MkdirAllIn is MkdirAll for a name below a root. It calls made with the parent of each directory
// that it has made, unless made is nil.
func MkdirAllIn(root *os.Root, name string, permissions fs.FileMode, made func(parent string)) error {
	if _, err := root.Stat(name); !errors.Is(err, fs.ErrNotExist) || name == "." {
		return err
	}
	if err := MkdirAllIn(root, path.Dir(name), permissions, made); err != nil {
		return err
	}
	err := MkdirIn(root, name, permissions)
	if errors.Is(err, fs.ErrExist) {
		return nil // created concurrently
	}
	if err == nil && made != nil {
		made(path.Dir(name))
	}
	return err
}

// MkdirIn makes a directory below a root, and shares it as by Inherit.
func MkdirIn(root *os.Root, name string, permissions fs.FileMode) error {
	parent, err := root.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := mkdirAt(int(parent.Fd()), path.Base(name), permissions); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	return nil
}

// mkdirAt makes a directory. One that is to be shared gets its name when it is: otherwise, another
// process could find it before, and couldn't write to it, or make directories in it that are not
// shared.
func mkdirAt(parent int, base string, permissions fs.FileMode) error {
	if _, shares := sharing(parent); !shares {
		return unix.Mkdirat(parent, base, uint32(permissions))
	}
	temporary := ".nar-herder-" + rand.Text()
	if err := unix.Mkdirat(parent, temporary, uint32(permissions)); err != nil {
		return err
	}
	inheritAt(parent, temporary, GroupEnters)
	err := unix.Renameat2(parent, temporary, parent, base, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL { // not every file system supports the flag
		err = unix.Renameat(parent, temporary, parent, base)
	}
	if err != nil {
		_ = unix.Unlinkat(parent, temporary, unix.AT_REMOVEDIR)
	}
	return err
}
