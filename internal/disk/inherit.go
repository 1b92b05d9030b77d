package disk

import (
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

// Inherit shares a file or directory that this process has made with the users of its
// parent directory, whatever the umask: where the group may write to the parent, it gets
// the parent's group, and those of the permissions that the parent gives the group. A
// directory that all users may write to, such as /tmp, shares nothing, and neither does one
// with an access control list: its group permissions are what the list allows at most.
//
// What this process may not change stays as it is: the group of a user who is not one of
// its members, and files of other users or with several names, which others may have put
// there. No file is opened, which would drop the locks that this process has on it.
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

// InheritFrom is Inherit for an open file of the caller in a directory. It may have another
// name elsewhere, which the caller knows.
func InheritFrom(parent, made *os.File, group fs.FileMode) {
	inheritFrom(int(parent.Fd()), made, group)
}

func inheritFrom(parent int, made *os.File, group fs.FileMode) {
	if above, shares := sharing(parent); shares {
		inherit(above, int(made.Fd()), group, 2)
	}
}

// OpenFile is [os.OpenFile] with O_CREATE, and with Inherit for a file that it creates.
// An existing file stays as it is: other users may have moved it there.
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

// openParent opens a directory that may be one without permission to list it.
func openParent(name string) (int, error) {
	return unix.Open(filepath.Dir(name), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// sharing describes a directory, and reports whether it is shared with a group.
func sharing(directory int) (stat unix.Stat_t, shares bool) {
	if unix.Fstat(directory, &stat) != nil || stat.Mode&0o022 != 0o020 {
		return stat, false
	}
	// By its name, as the descriptor may be one of O_PATH.
	_, err := unix.Getxattr(descriptorName(directory), aclAttribute, nil)
	return stat, err == unix.ENODATA || err == unix.ENOTSUP
}

// aclAttribute is set where a directory has more permissions than those of its mode; see
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
		return // its group is another, which must not get the permissions
	}
	if want := now.Mode&0o7777 | above.Mode&uint32(group); want != now.Mode&0o7777 {
		// A descriptor of O_PATH has no other way; see open(2).
		_ = unix.Chmod(descriptorName(made), want)
	}
}

// MkdirAll is [os.MkdirAll] with Inherit for each directory that it makes.
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
	err := os.Mkdir(name, permissions)
	if errors.Is(err, fs.ErrExist) {
		return os.MkdirAll(name, permissions) // another process was first, or it is not a directory
	}
	if err == nil {
		Inherit(name, GroupEnters)
	}
	return err
}

// MkdirAllIn is MkdirAll for a name below a root.
func MkdirAllIn(root *os.Root, name string, permissions fs.FileMode) error {
	if _, err := root.Stat(name); !errors.Is(err, fs.ErrNotExist) || name == "." {
		return err
	}
	if err := MkdirAllIn(root, path.Dir(name), permissions); err != nil {
		return err
	}
	err := root.Mkdir(name, permissions)
	if errors.Is(err, fs.ErrExist) {
		return nil // another process was first
	}
	if err == nil {
		InheritIn(root, name, GroupEnters)
	}
	return err
}
