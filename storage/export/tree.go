package export

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/storage/bytestore"
)

const (
	// temporaryDirectory contains the files that are being written. It is in the copy,
	// so that they can be renamed. It is removed at the end of a run, or by the next
	// one.
	temporaryDirectory = ".nar-herder-export"

	// markerName is a file of each copy. Without it, a directory with files is not a
	// copy, and an export must not change it.
	markerName = bytestore.ExportName
	markerText = "This directory is made by 'nar-herder export', which replaces and removes narinfos and nars here.\n"

	// narDirectory contains all nars of the copy.
	narDirectory = "nar"
)

// errLinkOut means that a symbolic link leads out of the copy.
var errLinkOut = errors.New("leads out of the directory by a symbolic link: export to where it leads, or mount that here")

// tree is the directory of a copy. It follows no symbolic link out of it.
type tree struct {
	name      string
	root      *os.Root // nil in a dry run without the directory
	handle    *os.File
	temporary *os.File // the temporary directory
	dry       bool
	count     uint64 // of temporary names
	fault     func(step string) error
}

// openTree opens and locks the directory for one run. A dry run changes nothing. Without
// adopt, it returns an error for a directory with files that is not a copy.
func openTree(name string, dry, adopt bool) (_ *tree, err error) {
	t := &tree{name: name, dry: dry}
	if !dry {
		if err := disk.MkdirAll(name, 0o755); err != nil {
			return nil, fmt.Errorf("create the directory %s: %w", name, disk.Cause(err))
		}
	}
	t.root, err = os.OpenRoot(name)
	if dry && errors.Is(err, fs.ErrNotExist) {
		return t, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the directory %s: %w", name, disk.Cause(err))
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	if t.handle, err = t.root.Open("."); err != nil {
		return nil, fmt.Errorf("open the directory %s: %w", name, disk.Cause(err))
	}
	if !adopt {
		if err := t.refuseOther(); err != nil {
			return nil, err
		}
	}
	if dry {
		return t, nil
	}
	// Ignore other errors: the file system may not support locks.
	if err := unix.Flock(int(t.handle.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return nil, fmt.Errorf("another export to %s is running: wait until it has finished", name)
	}
	err = t.root.RemoveAll(temporaryDirectory)
	if err == nil {
		err = disk.MkdirIn(t.root, temporaryDirectory, 0o700)
	}
	if err == nil {
		t.temporary, err = t.root.Open(temporaryDirectory)
	}
	if err != nil {
		return nil, fmt.Errorf("make %s in %s: %w", temporaryDirectory, name, disk.Cause(err))
	}
	return t, nil
}

// refuseOther returns an error if the directory has files and is not a copy.
func (t *tree) refuseOther() error {
	if _, err := t.stat(markerName); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return t.explain(err)
	}
	directory, err := t.root.Open(".")
	if err != nil {
		return t.explain(err)
	}
	defer directory.Close()
	for {
		names, err := directory.Readdirnames(4)
		for _, name := range names {
			// A new file system has lost+found.
			if name != temporaryDirectory && name != "lost+found" {
				return fmt.Errorf("%s has files, such as %s, but no %s, so it was not made by an export: name another directory, or, if narinfos and nars in it may be replaced and removed, use --adopt", t.name, name, markerName)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return t.explain(err)
		}
	}
}

// mark marks the directory as a copy.
func (t *tree) mark() error {
	if _, err := t.stat(markerName); err == nil {
		return nil
	}
	temporary, err := t.write([]byte(markerText))
	if err == nil {
		err = t.rename(temporary, markerName)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", markerName, t.explain(err))
	}
	return nil
}

// close removes temporary files and unlocks the directory.
func (t *tree) close() error {
	if t.root == nil {
		return nil
	}
	defer t.root.Close()
	if t.handle != nil {
		defer t.handle.Close()
	}
	if t.temporary == nil {
		return nil
	}
	defer t.temporary.Close()
	if err := t.step("clean"); err != nil {
		return err
	}
	if err := t.root.RemoveAll(temporaryDirectory); err != nil {
		return fmt.Errorf("remove %s in %s: %w: the next export will remove it", temporaryDirectory, t.name, disk.Cause(err))
	}
	return nil
}

// step is called before each change.
func (t *tree) step(what string) error {
	if t.fault == nil {
		return nil
	}
	return t.fault(what)
}

// stat describes a file without following a symbolic link. The error is [fs.ErrNotExist]
// if it doesn't exist.
func (t *tree) stat(name string) (fs.FileInfo, error) {
	if t.root == nil {
		return nil, fs.ErrNotExist
	}
	return t.root.Lstat(name)
}

// read returns the content of a regular file of at most that many bytes.
func (t *tree) read(name string, most int64) ([]byte, error) {
	if t.root == nil {
		return nil, fs.ErrNotExist
	}
	file, err := t.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("%s is not a regular file, or is longer than %d bytes", name, most)
	}
	return io.ReadAll(io.LimitReader(file, most+1))
}

// newName returns an unused temporary name.
func (t *tree) newName() string {
	t.count++
	return temporaryDirectory + "/" + strconv.FormatUint(t.count, 10)
}

// write writes a short file under a temporary name. sync flushes it.
func (t *tree) write(text []byte) (temporary string, err error) {
	if t.dry {
		return "", nil
	}
	if err := t.step("write"); err != nil {
		return "", err
	}
	temporary = t.newName()
	err = t.root.WriteFile(temporary, text, 0o644)
	disk.InheritIn(t.root, temporary, disk.GroupReads)
	return temporary, err
}

// copy writes and flushes a file of the given size and time under a temporary name.
func (t *tree) copy(from io.Reader, size int64, modified time.Time) (temporary string, err error) {
	if err := t.step("copy"); err != nil {
		return "", err
	}
	temporary = t.newName()
	file, err := t.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return "", err
	}
	disk.InheritIn(t.root, temporary, disk.GroupReads)
	n, err := io.Copy(file, io.LimitReader(from, size+1))
	if err == nil && n != size {
		err = fmt.Errorf("got %d bytes or more, want %d", n, size)
	}
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = t.root.Chtimes(temporary, modified, modified)
	}
	if err != nil {
		_ = t.root.Remove(temporary) // close removes it otherwise
		return "", err
	}
	return temporary, nil
}

// linkOpen makes a hard link of an open file under a temporary name.
func (t *tree) linkOpen(file *os.File) (temporary string, err error) {
	if err := t.step("link"); err != nil {
		return "", err
	}
	temporary = t.newName()
	// Link the descriptor, as the path may refer to another file by now.
	for {
		err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", file.Fd()),
			int(t.temporary.Fd()), path.Base(temporary), unix.AT_SYMLINK_FOLLOW)
		if err != unix.EINTR {
			return temporary, err
		}
	}
}

// linkWithin makes a hard link of a file of the copy under a temporary name.
func (t *tree) linkWithin(name string) (temporary string, err error) {
	if err := t.step("link"); err != nil {
		return "", err
	}
	temporary = t.newName()
	return temporary, t.root.Link(name, temporary)
}

// rename renames a temporary file, replacing another file. It creates directories if
// necessary.
func (t *tree) rename(temporary, name string) error {
	if t.dry {
		return nil
	}
	if err := t.step("rename " + name); err != nil {
		return err
	}
	err := t.root.Rename(temporary, name)
	if errors.Is(err, fs.ErrNotExist) {
		if err := disk.MkdirAllIn(t.root, path.Dir(name), 0o755, nil); err != nil {
			return err
		}
		err = t.root.Rename(temporary, name)
	}
	return err
}

// setTime sets the time of a file.
func (t *tree) setTime(name string, modified time.Time) error {
	if t.dry {
		return nil
	}
	return t.root.Chtimes(name, modified, modified)
}

// remove removes a file. It is not an error if it doesn't exist.
func (t *tree) remove(name string) error {
	if t.dry {
		return nil
	}
	if err := t.step("remove " + name); err != nil {
		return err
	}
	if err := t.root.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sync flushes the whole file system: for hundreds of files, that is much faster than a
// call for each of them.
func (t *tree) sync() error {
	if t.dry {
		return nil
	}
	if err := t.step("sync"); err != nil {
		return err
	}
	if err := unix.Syncfs(int(t.handle.Fd())); err != nil {
		return fmt.Errorf("flush the file system of %s: %w", t.name, err)
	}
	return nil
}

// explain adds the directory and advice to an error of the copy.
func (t *tree) explain(err error) error {
	err = disk.Cause(err)
	switch {
	case strings.Contains(err.Error(), "escapes from parent"):
		// os.Root has no exported error for this.
		err = errLinkOut
	case errors.Is(err, syscall.EXDEV):
		return fmt.Errorf("in %s: a directory in it is on another file system (%w): use one file system for the whole copy", t.name, err)
	}
	return fmt.Errorf("in %s: %w", t.name, err)
}

// isFatal reports whether all further items would fail with the same error.
func isFatal(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EROFS)
}
