package convert

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
)

// isFree refuses a name of a file, or of files that SQLite keeps beside a database: it would
// take those for part of the new one. The error is [fs.ErrExist].
func isFree(name string) error {
	for _, suffix := range []string{"", "-wal", "-journal"} {
		if info, err := os.Lstat(name + suffix); err == nil && (suffix == "" || info.Size() > 0) {
			return fmt.Errorf("%s is there already: name a new file, or move that one away: %w", name+suffix, fs.ErrExist)
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// putInPlace renames a finished file to a name that no file has.
func putInPlace(made, name string) error {
	if err := errors.Join(isFree(name), leaveNothingBeside(made)); err != nil {
		return err
	}
	err := disk.RenameNew(made, name)
	if err != nil {
		return fmt.Errorf("what was made is finished, but can't get its name: %w", err)
	}
	return disk.SyncDirectory(name)
}

// replace replaces a file by its finished conversion, keeps it as NAME.original, and returns
// that name. On file systems with hard links, the name always exists.
func replace(made, name string) (kept string, err error) {
	if err := errors.Join(leaveNothingBeside(made), leaveNothingBeside(name)); err != nil {
		return "", err
	}
	if kept, err = keep(name); err != nil {
		return "", fmt.Errorf("keep %s under another name: %w", name, err)
	}
	if err := os.Rename(made, name); err != nil {
		return "", fmt.Errorf("put what %s was converted to in its place; that is kept as %s: %w", name, kept, err)
	}
	return kept, disk.SyncDirectory(name)
}

// keep links or renames a file to a name that no other file has.
func keep(name string) (kept string, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	for n := 1; ; n++ {
		kept = name + ".original"
		if n > 1 {
			kept += "." + strconv.Itoa(n)
		}
		err := os.Link(name, kept)
		if errors.Is(err, fs.ErrExist) {
			// An earlier run may have come this far.
			if there, err := os.Lstat(kept); err == nil && os.SameFile(info, there) {
				return kept, nil
			}
			continue
		}
		if err == nil {
			return kept, disk.SyncDirectory(name)
		}
		// This file system has no hard links. From here on the name doesn't exist: if this
		// run ends now, restore puts the finished file there.
		if _, err := os.Lstat(kept); err == nil {
			continue
		}
		if err := os.Rename(name, kept); err != nil {
			return "", err
		}
		return kept, disk.SyncDirectory(name)
	}
}

// leaveNothingBeside removes the files beside a closed database, which SQLite would use for
// the next database of that name. It refuses a log with changes.
func leaveNothingBeside(path string) error {
	if info, err := os.Stat(path + "-wal"); err == nil && info.Size() > 0 {
		return fmt.Errorf("%s can't be moved: %[1]s-wal has changes that are not in it yet: stop the other program that has it open, and try again", path)
	}
	for _, suffix := range []string{"-wal", "-shm", "-journal"} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// likeness gives a new file the mode of another, and its owner if this process may: imports
// often run as another user of the same group.
func likeness(of, path string) error {
	info, err := os.Stat(of)
	if err != nil {
		return err
	}
	var owner unix.Stat_t
	if err := unix.Stat(of, &owner); err == nil {
		_ = os.Chown(path, int(owner.Uid), int(owner.Gid)) // as far as this process may
	}
	// The old file may have been read-only.
	err = os.Chmod(path, info.Mode().Perm()|0o600)
	disk.Inherit(path, disk.GroupWrites)
	return err
}
