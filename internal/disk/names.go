package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// RenameNew renames a file without replacing another: if the new name exists, the error is
// [fs.ErrExist].
func RenameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) {
		// The file system doesn't support RENAME_NOREPLACE: check just before.
		if _, err := os.Lstat(to); err == nil {
			return fmt.Errorf("rename %s to %s: %w", from, to, fs.ErrExist)
		}
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
	}
	return nil
}

// SyncDirectory flushes the directory of a file, so that its name survives a loss of power.
func SyncDirectory(name string) error {
	directory, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	return errors.Join(directory.Sync(), directory.Close())
}

// Cause strips the operation and path from an error of package os, for messages that contain
// them already.
func Cause(err error) error {
	var pathError *fs.PathError
	var linkError *os.LinkError
	switch {
	case errors.As(err, &pathError):
		return pathError.Err
	case errors.As(err, &linkError):
		return linkError.Err
	}
	return err
}
