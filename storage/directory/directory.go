// Package directory stores nars in a local directory, each under the path in its narinfo's
// URL. It is the backend of --storage=DIR.
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

// temporaryPrefix begins the names of files that are being written. They are in the same
// directory as their final name, as a rename works only within a file system. The base
// name of a store path never begins with a dot.
const temporaryPrefix = ".nar-herder-"

// spoolFolder contains files that arrive in parts. They are in one directory, so that
// abandoned ones are found without listing the store.
const spoolFolder = temporaryPrefix + "spool"

// copyStep is how many bytes are copied between two checks of the context.
const copyStep = 64 << 20

// Directory is a [bytestore.Store].
type Directory struct {
	bytestore.Defaults

	name string
	root *os.Root
	info fs.FileInfo

	handle    *os.File // for openForReading
	noOpenat2 atomic.Bool
	// cantMove is true if parts of the store are different mounts of one file system:
	// rename(2) doesn't work between them.
	cantMove atomic.Bool

	mu    sync.Mutex
	dirty map[string]bool // directories whose entries have changed since Sync

	// syncing is held by Sync, so that a second Sync waits for the first one's
	// directories.
	syncing sync.Mutex
}

// Open opens an existing directory as a store. It ignores unreferenced files.
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

// Close closes the directory. Open readers remain usable.
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

// check rejects invalid names, which os.Root would clean, and hides temporary files.
func (d *Directory) check(tried, name string) error {
	if !fs.ValidPath(name) || name == "." {
		return fmt.Errorf("%s %q in storage %s: not a name for a nar: %w", tried, name, d.name, fs.ErrInvalid)
	}
	if isTemporary(name) {
		return fmt.Errorf("%s %s in storage %s: %w", tried, name, d.name, fs.ErrNotExist)
	}
	return nil
}

// inPlace returns an error if the directory's path no longer refers to it. A directory that
// was moved or unmounted remains readable and writable here, but other processes, and this
// one after a restart, would not find the files.
func (d *Directory) inPlace() error {
	now, err := os.Stat(d.name)
	if err != nil {
		// Don't wrap the cause: it doesn't mean that a nar is absent.
		return fmt.Errorf("storage %s %w: %v: mount it again, or restart", d.name, bytestore.ErrNotInPlace, disk.Cause(err))
	}
	if !os.SameFile(now, d.info) {
		return fmt.Errorf("storage %s %w: mount it again, or restart", d.name, bytestore.ErrNotInPlace)
	}
	return nil
}

func (d *Directory) irregular(name string) error {
	return fmt.Errorf("%s in storage %s is not a regular file: %w", name, d.name, fs.ErrNotExist)
}

// describe describes a regular file. Any other file counts as absent.
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

// blockUnit is the unit of st_blocks, regardless of the file system's block size.
const blockUnit = 512

func isTemporary(name string) bool {
	return strings.HasPrefix(path.Base(name), temporaryPrefix) || strings.HasPrefix(name, spoolFolder+"/")
}

// modTime returns the modification time, or the ctime of a temporary file if that is later:
// a link by StageFile has the modification time of its source, but linking sets the ctime.
func modTime(info bytestore.Info, changed time.Time) time.Time {
	if info.Temporary && changed.After(info.ModTime) {
		return changed
	}
	return info.ModTime
}

// explain converts an error of the system. "No such file" means absent only while the
// directory itself is in place.
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
	// 0644: replacing or removing a file needs a writable directory only.
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
	// If the source is a file, io.Copy uses copy_file_range, which shares the blocks on
	// some file systems. Copy in steps, so that it can be cancelled.
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
		return nil, fmt.Errorf("store %s: %w: got %d bytes, want %d", name, bytestore.ErrWrongSize, written, size)
	}
	if n, err := io.ReadFull(from, make([]byte, 1)); n > 0 {
		return nil, fmt.Errorf("store %s: %w: got more than %d bytes", name, bytestore.ErrWrongSize, size)
	} else if err != nil && err != io.EOF {
		return nil, fmt.Errorf("store %s: read after its %d bytes: %w", name, size, err)
	}
	if err := file.Sync(); err != nil {
		return nil, d.explain("flush", temporary, err)
	}
	if err := file.Close(); err != nil {
		return nil, d.explain("write", temporary, err)
	}
	return &staged{d: d, temporary: temporary, name: name}, nil
}

// StageFile implements [bytestore.Store] with a hard link. Commit moves a file of the
// spool: if the process ends before, the file is still in the spool, and can be resumed.
func (d *Directory) StageFile(ctx context.Context, name string, file *os.File, size int64) (bytestore.Staged, error) {
	source := file.Name()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w: not a regular file", source, bytestore.ErrCantShare)
	}
	if info.Size() != size {
		return nil, fmt.Errorf("%s: %w: it has %d bytes, want %d", source, bytestore.ErrWrongSize, info.Size(), size)
	}
	inSpool := filepath.Dir(source) == filepath.Join(d.name, spoolFolder)
	trusting := bytestore.TrustsOwners(ctx)
	if trusting {
		err = checkShareable(file, info)
	} else {
		err = takeOver(file, info, inSpool)
	}
	if err != nil {
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
	// Link the descriptor, as the path may refer to another file by now.
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", file.Fd()), int(parent.Fd()), path.Base(temporary), unix.AT_SYMLINK_FOLLOW)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", source, bytestore.ErrCantShare, err)
	}
	if !trusting {
		disk.InheritFrom(parent, file, disk.GroupReads)
	}
	return &staged{d: d, temporary: temporary, name: name}, nil
}

// Spool implements [bytestore.Store].
func (d *Directory) Spool() (string, error) {
	if err := d.inPlace(); err != nil {
		return "", err
	}
	if err := disk.MkdirIn(d.root, spoolFolder, 0o775); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", d.explain("create directory", spoolFolder, err)
	}
	// StageFile can't move files out of a symbolic link's target.
	info, err := d.root.Lstat(spoolFolder)
	if err != nil {
		return "", d.explain("look for", spoolFolder, err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("%s in storage %s is not a directory: remove it", spoolFolder, d.name)
	}
	return filepath.Join(d.name, spoolFolder), nil
}

// canMove reports whether a file of the spool can probably be moved to a directory of the
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

// temporary creates the directory of a name, and returns a new temporary name in it.
func (d *Directory) temporary(name string) (string, error) {
	if !fs.ValidPath(name) || name == "." || isTemporary(name) {
		return "", fmt.Errorf("store %q: not a name for a nar", name)
	}
	parent := path.Dir(name)
	if err := disk.MkdirAllIn(d.root, parent, 0o775, d.touch); err != nil {
		return "", d.explain("create directory", parent, err)
	}
	return path.Join(parent, temporaryPrefix+rand.Text()), nil
}

// Flush implements [bytestore.Store].
func (d *Directory) Flush(ctx context.Context, name string) error {
	if err := d.check("flush", name); err != nil {
		return err
	}
	if err := d.protect(name, bytestore.TrustsOwners(ctx)); err != nil {
		return err
	}
	// Its directories may be as new as the file.
	for parent := path.Dir(name); ; parent = path.Dir(parent) {
		d.touch(parent)
		if parent == "." {
			return nil
		}
	}
}

// touch marks a directory for Sync.
func (d *Directory) touch(parent string) {
	d.mu.Lock()
	d.dirty[parent] = true
	d.mu.Unlock()
}

// Sync implements [bytestore.Store].
func (d *Directory) Sync(context.Context) error {
	d.syncing.Lock()
	defer d.syncing.Unlock()
	// Check here, as Sync comes before the rows: once for a whole batch.
	if err := d.inPlace(); err != nil {
		return err
	}
	d.mu.Lock()
	dirty := d.dirty
	d.dirty = make(map[string]bool)
	d.mu.Unlock()
	for parent := range dirty {
		// A missing directory was removed with its files since.
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

// Probe implements [bytestore.Store]. It doesn't detect exceeded quotas.
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
