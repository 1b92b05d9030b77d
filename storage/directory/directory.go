// Package directory keeps nars in a directory of the machine, each under the
// path that its URL names. It is the backend of --storage=DIR.
package directory

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/storage/bytestore"
)

// temporaryPrefix begins the names of files that are being written. They lie
// beside their final name, since a rename is only atomic within a directory's
// file system. No store path's base name begins with a dot.
const temporaryPrefix = ".nar-herder-"

// spoolFolder has files that come bit by bit: in one place, so that those that
// nobody will go on with are found without a listing of all.
const spoolFolder = temporaryPrefix + "spool"

// copyStep is how many bytes are copied between two looks at whether somebody
// still wants them.
const copyStep = 64 << 20

// Directory is a [bytestore.Store].
type Directory struct {
	bytestore.Defaults

	name string
	root *os.Root
	info fs.FileInfo

	handle    *os.File // for openForReading
	noOpenat2 atomic.Bool
	// cantMove: parts of the store are mounts of one file system, between which
	// nothing can be moved.
	cantMove atomic.Bool

	mu    sync.Mutex
	dirty map[string]bool // directories whose entries have changed since Sync

	// syncing lets a Sync wait for another that has taken its directories.
	syncing sync.Mutex
}

// Open takes an existing directory as a store. What else lies in it is left
// alone.
func Open(name string) (*Directory, error) {
	root, err := os.OpenRoot(name)
	if err != nil {
		return nil, fmt.Errorf("storage %s: %w: create the directory, or name another with --storage", name, disk.Cause(err))
	}
	handle, err := root.Open(".")
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("storage %s: %w", name, disk.Cause(err))
	}
	info, err := handle.Stat()
	if err != nil {
		root.Close()
		handle.Close()
		return nil, fmt.Errorf("storage %s: %w", name, disk.Cause(err))
	}
	return &Directory{name: name, root: root, info: info, handle: handle, dirty: make(map[string]bool)}, nil
}

// Close lets the directory go. Readers that are open stay good.
func (d *Directory) Close() error {
	return errors.Join(d.root.Close(), d.handle.Close())
}

func (d *Directory) String() string { return d.name }

// Stat implements [bytestore.Store].
func (d *Directory) Stat(_ context.Context, name string) (bytestore.Info, error) {
	if err := d.check("look for", name); err != nil {
		return bytestore.Info{}, err
	}
	info, err := d.stat(name)
	if err != nil {
		return bytestore.Info{}, d.explain("look for", name, err)
	}
	return d.describe(name, info)
}

// Open implements [bytestore.Store]. The reader is a [bytestore.LocalFile].
func (d *Directory) Open(_ context.Context, name string, offset, _ int64) (io.ReadCloser, bytestore.Info, error) {
	if err := d.check("open", name); err != nil {
		return nil, bytestore.Info{}, err
	}
	file, stat, err := d.open(name)
	if err != nil {
		return nil, bytestore.Info{}, err
	}
	return &bytestore.FileReader{File: file, Offset: offset}, infoOf(name, stat), nil
}

// check refuses what is no name, before os.Root makes one of it that is, and
// hides temporary files from all that is not about them.
func (d *Directory) check(tried, name string) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("%s %q in storage %s: not a name for a nar: %w", tried, name, d.name, fs.ErrInvalid)
	}
	if isTemporary(name) {
		return fmt.Errorf("%s %s in storage %s: %w", tried, name, d.name, fs.ErrNotExist)
	}
	return nil
}

// inPlace says whether the directory is still what its name leads to. One that
// was moved, or whose file system was unmounted, can be read and written on, but
// no other process, nor this one after a restart, would find what is in it.
func (d *Directory) inPlace() error {
	now, err := os.Stat(d.name)
	if err != nil {
		// The cause is not wrapped: it does not say that any nar is certainly not there.
		return fmt.Errorf("storage %s %w: %v: mount it again, or restart", d.name, bytestore.ErrNotInPlace, disk.Cause(err))
	}
	if !os.SameFile(now, d.info) {
		return fmt.Errorf("storage %s %w: mount it again, or restart", d.name, bytestore.ErrNotInPlace)
	}
	return nil
}

func (d *Directory) irregular(name string) error {
	return fmt.Errorf("%s in storage %s is no regular file: %w", name, d.name, fs.ErrNotExist)
}

// describe refuses what is no regular file: to a store, that is not there.
func (d *Directory) describe(name string, info fs.FileInfo) (bytestore.Info, error) {
	if !info.Mode().IsRegular() {
		return bytestore.Info{}, d.irregular(name)
	}
	described := bytestore.Info{
		Name: name, Size: info.Size(), Usage: info.Size(), ModTime: info.ModTime(), Temporary: isTemporary(name),
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		described.Usage = stat.Blocks * blockUnit
		described.Linked = stat.Nlink > 1
		described.Changed = time.Unix(stat.Ctim.Unix())
		described.ModTime = modTime(described, described.Changed)
	}
	return described, nil
}

// infoOf describes a regular file.
func infoOf(name string, stat *unix.Stat_t) bytestore.Info {
	info := bytestore.Info{Name: name, Size: stat.Size, Usage: stat.Blocks * blockUnit, ModTime: time.Unix(stat.Mtim.Unix()), Temporary: isTemporary(name), Linked: stat.Nlink > 1}
	info.Changed = time.Unix(stat.Ctim.Unix())
	info.ModTime = modTime(info, info.Changed)
	return info
}

// blockUnit is what numbers of blocks count in, whatever the file system's own.
const blockUnit = 512

func isTemporary(name string) bool {
	return strings.HasPrefix(path.Base(name), temporaryPrefix) || strings.HasPrefix(name, spoolFolder+"/")
}

// modTime is the time of a file that was changed last at the given one. A link
// that StageFile made has the age of its source by its modification, and its own
// by the change of the count of links.
func modTime(info bytestore.Info, changed time.Time) time.Time {
	if info.Temporary && changed.After(info.ModTime) {
		return changed
	}
	return info.ModTime
}

// explain makes an error of the system one of the three answers: "no such file"
// is only believed while the directory itself is still in its place.
func (d *Directory) explain(tried, name string, err error) error {
	switch err = disk.Cause(err); {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR):
		if err := d.inPlace(); err != nil {
			return fmt.Errorf("%s %s: %w", tried, name, err)
		}
		return fmt.Errorf("%s %s in storage %s: %w", tried, name, d.name, fs.ErrNotExist)
	case errors.Is(err, bytestore.ErrOutside) || strings.Contains(err.Error(), "escapes from parent"):
		// os.Root has no exported error for this.
		return fmt.Errorf("%s %s in storage %s: %w by a symbolic link: copy the target in, or make it the storage itself", tried, name, d.name, bytestore.ErrOutside)
	}
	if errors.Is(err, fs.ErrPermission) && (strings.HasPrefix(tried, "create") || tried == "remove") {
		if denied := disk.Unwritable(filepath.Join(d.name, path.Dir(name))); denied != nil {
			err = denied
		}
	}
	return fmt.Errorf("%s %s in storage %s: %w", tried, name, d.name, err)
}

// Stage implements [bytestore.Store].
func (d *Directory) Stage(ctx context.Context, name string, from io.Reader, size int64) (_ bytestore.Staged, err error) {
	temporary, err := d.temporary(name)
	if err != nil {
		return nil, err
	}
	// Only the directory must be writable for a file to be replaced or removed.
	file, err := d.root.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, d.explain("create", temporary, err)
	}
	disk.InheritIn(d.root, temporary, disk.GroupReads)
	defer func() {
		if err != nil {
			file.Close()
			_ = d.root.Remove(temporary)
		}
	}()
	// With a file as source this is copy_file_range, which on some file
	// systems copies nothing at all. In steps, so that it can be cancelled.
	var written int64
	for written < size {
		n, err := io.Copy(file, io.LimitReader(from, min(size-written, copyStep)))
		if written += n; err != nil {
			return nil, d.explain("write", temporary, err)
		}
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("store %s: %w", name, err)
		}
		if n == 0 {
			break
		}
	}
	if written < size {
		return nil, fmt.Errorf("store %s: %w: %d bytes came where %d were expected", name, bytestore.ErrWrongSize, written, size)
	}
	if n, err := io.ReadFull(from, make([]byte, 1)); n > 0 {
		return nil, fmt.Errorf("store %s: %w: more than the expected %d bytes came", name, bytestore.ErrWrongSize, size)
	} else if err != nil && err != io.EOF {
		return nil, fmt.Errorf("store %s: read what follows its %d bytes: %w", name, size, err)
	}
	if err := file.Sync(); err != nil {
		return nil, d.explain("flush", temporary, err)
	}
	if err := file.Close(); err != nil {
		return nil, d.explain("write", temporary, err)
	}
	return &staged{d: d, temporary: temporary, name: name}, nil
}

// StageFile implements [bytestore.Store] with a hard link, and with a file of the
// spool by moving it: should the process end before Commit, nothing is left but that,
// to be gone on with.
func (d *Directory) StageFile(_ context.Context, name string, file *os.File, size int64) (bytestore.Staged, error) {
	source := file.Name()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: not a regular file", source, bytestore.ErrCantShare)
	}
	if info.Size() != size {
		return nil, fmt.Errorf("%s: %w: it has %d bytes where %d were expected", source, bytestore.ErrWrongSize, info.Size(), size)
	}
	inSpool := filepath.Dir(source) == filepath.Join(d.name, spoolFolder)
	if err := takeOver(file, info, inSpool); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", source, bytestore.ErrCantShare, err)
	}
	if err := file.Sync(); err != nil {
		return nil, fmt.Errorf("flush %s: %w", source, disk.Cause(err))
	}
	temporary, err := d.temporary(name)
	if err != nil {
		return nil, err
	}
	if inSpool && d.canMove(path.Dir(name)) {
		return &staged{d: d, temporary: path.Join(spoolFolder, filepath.Base(source)), name: name, borrowed: info}, nil
	}
	parent, err := d.root.Open(path.Dir(temporary))
	if err != nil {
		return nil, d.explain("open", path.Dir(temporary), err)
	}
	defer parent.Close()
	// By descriptor, so that it is the very file that was looked at.
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", file.Fd()), int(parent.Fd()), path.Base(temporary), unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", source, bytestore.ErrCantShare, err)
	}
	disk.InheritFrom(parent, file, disk.GroupReads)
	return &staged{d: d, temporary: temporary, name: name}, nil
}

// Spool implements [bytestore.Store].
func (d *Directory) Spool() (string, error) {
	if err := d.inPlace(); err != nil {
		return "", err
	}
	if err := d.root.Mkdir(spoolFolder, 0o775); err == nil {
		disk.InheritIn(d.root, spoolFolder, disk.GroupEnters)
	} else if !errors.Is(err, fs.ErrExist) {
		return "", d.explain("create directory", spoolFolder, err)
	}
	// A link would lead to where StageFile can't take files from.
	info, err := d.root.Lstat(spoolFolder)
	if err != nil {
		return "", d.explain("look for", spoolFolder, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s in storage %s is no directory: remove it", spoolFolder, d.name)
	}
	return filepath.Join(d.name, spoolFolder), nil
}

// canMove says whether a file of the spool can perhaps be moved to a directory of the
// store.
func (d *Directory) canMove(to string) bool {
	if d.cantMove.Load() {
		return false
	}
	from, err := d.root.Stat(spoolFolder)
	if err != nil {
		return false
	}
	parent, err := d.root.Stat(to)
	if err != nil {
		return false
	}
	of, ok := from.Sys().(*syscall.Stat_t)
	into, okToo := parent.Sys().(*syscall.Stat_t)
	return ok && okToo && of.Dev == into.Dev
}

// temporary makes the directory that the name lies in, and returns a new name
// in it.
func (d *Directory) temporary(name string) (string, error) {
	if !fs.ValidPath(name) || name == "." || isTemporary(name) {
		return "", fmt.Errorf("store %q: not a name for a nar", name)
	}
	parent := path.Dir(name)
	if err := d.makeAll(parent); err != nil {
		return "", d.explain("create directory", parent, err)
	}
	return path.Join(parent, temporaryPrefix+rand.Text()), nil
}

// makeAll creates a directory and those above it, and notes which of them have
// new entries.
func (d *Directory) makeAll(name string) error {
	if _, err := d.root.Stat(name); err == nil || name == "." {
		return err
	}
	if err := d.makeAll(path.Dir(name)); err != nil {
		return err
	}
	err := d.root.Mkdir(name, 0o775)
	if err == nil {
		disk.InheritIn(d.root, name, disk.GroupEnters)
		d.touch(path.Dir(name))
	} else if errors.Is(err, fs.ErrExist) {
		err = nil // another was first
	}
	return err
}

// Flush implements [bytestore.Store].
func (d *Directory) Flush(_ context.Context, name string) error {
	if err := d.check("flush", name); err != nil {
		return err
	}
	if err := d.protect(name); err != nil {
		return err
	}
	// The directories that it lies in may be as new as the file.
	for parent := path.Dir(name); ; parent = path.Dir(parent) {
		d.touch(parent)
		if parent == "." {
			return nil
		}
	}
}

// touch notes that Sync has to flush the directory.
func (d *Directory) touch(parent string) {
	d.mu.Lock()
	d.dirty[parent] = true
	d.mu.Unlock()
}

// Sync implements [bytestore.Store].
func (d *Directory) Sync(context.Context) error {
	d.syncing.Lock()
	defer d.syncing.Unlock()
	// Here, as it is what comes before a row: one look for a whole batch.
	if err := d.inPlace(); err != nil {
		return err
	}
	d.mu.Lock()
	dirty := d.dirty
	d.dirty = make(map[string]bool)
	d.mu.Unlock()
	for parent := range dirty {
		// One that is gone was removed since, with all that was in it.
		if err := d.syncOne(parent); err != nil && !errors.Is(err, fs.ErrNotExist) {
			d.mu.Lock()
			for again := range dirty {
				d.dirty[again] = true
			}
			d.mu.Unlock()
			return d.explain("flush directory", parent, err)
		}
	}
	return nil
}

// syncOne flushes a file or directory.
func (d *Directory) syncOne(name string) error {
	handle, err := d.root.Open(name)
	if err != nil {
		return err
	}
	defer handle.Close()
	return handle.Sync()
}

// Remove implements [bytestore.Store].
func (d *Directory) Remove(_ context.Context, name string) error {
	if !fs.ValidPath(name) {
		return fmt.Errorf("remove %q in storage %s: not a name for a nar: %w", name, d.name, fs.ErrInvalid)
	}
	err := d.unlink(name)
	if err != nil {
		if err = d.explain("remove", name, err); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	d.touch(path.Dir(name))
	return nil
}

// Probe implements [bytestore.Store]. Quotas, it does not see.
func (d *Directory) Probe(context.Context) error {
	if err := d.inPlace(); err != nil {
		return err
	}
	err := disk.Unwritable(d.name)
	var system unix.Statfs_t
	if err == nil {
		err = unix.Statfs(d.name, &system)
	}
	if err == nil && isFull(&system) {
		err = unix.ENOSPC
	}
	if err != nil {
		return fmt.Errorf("write to storage %s: %w", d.name, err)
	}
	return nil
}
