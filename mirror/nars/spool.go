package nars

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/narinfo"
	"nar-herder/storage"
)

// spoolKey names the spool file of an item's Nth file: by the item's hash, and by
// what the file is to be, so that one of another nar is another.
func spoolKey(item *storage.Item, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d", item.FileName(n), item.Narinfo.NarHash, item.Narinfo.Files[n].Size))
	return item.Hash.String() + "-" + narinfo.EncodeBase32(sum[:10])
}

// errInUse says that another process writes to a spool file.
var errInUse = errors.New("another process is fetching it into this storage")

// openSpool opens the spool file, and makes it if need be. have is what is in it
// from before. Nobody else writes to it until it is closed.
func (f *Fetcher) openSpool(key string) (file *os.File, have int64, err error) {
	directory, err := f.storage.Spool(f.options.Spool)
	if err != nil {
		return nil, 0, err
	}
	name := filepath.Join(directory, key)
	for range 10 {
		file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
		if errors.Is(err, fs.ErrPermission) {
			// Of another user: it is removed, unless it is in use.
			file, err = os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		}
		if err != nil {
			return nil, 0, err
		}
		have, again, err := lockSpool(file)
		if err == nil && !again {
			return file, have, nil
		}
		file.Close()
		if err != nil {
			return nil, 0, err
		}
	}
	return nil, 0, errInUse
}

// removeSpool removes the spool file of an item's Nth file, which is stored: a process
// that was killed may have left it, where the storage has made a copy.
func (f *Fetcher) removeSpool(item *storage.Item, n int) error {
	directory, err := f.storage.Spool(f.options.Spool)
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(directory, spoolKey(item, n))); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// lockSpool makes sure that the file is this process's alone. again says that it
// is none to be written to, and its name is free.
func lockSpool(file *os.File) (have int64, again bool, err error) {
	switch err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
	case unix.EWOULDBLOCK:
		return 0, false, errInUse
	case unix.ENOSYS, unix.ENOLCK, unix.EOPNOTSUPP, unix.EINVAL:
		// A file system without locks: who shares one must know.
	default:
		return 0, false, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	info, err := file.Stat()
	if err != nil {
		return 0, false, err
	}
	named, err := os.Lstat(file.Name())
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, named) {
		return 0, true, nil // the other process was done with it just now
	} else if err != nil {
		return 0, false, err
	}
	if !info.Mode().IsRegular() {
		return 0, false, fmt.Errorf("%s is no regular file: remove it", file.Name())
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && (stat.Nlink > 1 || os.Geteuid() != 0 && int(stat.Uid) != os.Geteuid()) {
		// Another name of it may be a nar's, to which nothing is written. The file of
		// another user would have to be copied into the storage.
		return 0, true, os.Remove(file.Name())
	}
	// The server may run as another user than who looks after the storage.
	err = file.Chmod(0o644)
	disk.Inherit(file.Name(), disk.GroupReads)
	return info.Size(), false, err
}

// dropStale removes spool files that nobody will go on with: of items that have
// the file, or are gone, and those that have not grown for long.
func (f *Fetcher) dropStale(ctx context.Context) error {
	if _, err := f.storage.Identity(ctx); err != nil {
		return err // it isn't mounted, perhaps
	}
	directory, err := f.storage.Spool(f.options.Spool)
	if err != nil {
		return err
	}
	handle, err := os.Open(directory)
	if err != nil {
		return err
	}
	defer handle.Close()
	names, err := handle.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if ctx.Err() != nil {
			return nil
		}
		stale, err := f.isStale(ctx, directory, name)
		if err != nil {
			return err
		}
		if !stale && f.isCounted(ctx, directory, name) {
			continue
		}
		f.unretain(name)
		if err := os.Remove(filepath.Join(directory, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// isCounted makes sure that a spool file counts for the limits. It returns false when
// there is no room for it.
func (f *Fetcher) isCounted(ctx context.Context, directory, name string) bool {
	f.mu.Lock()
	counted := f.flights[name] != nil || f.retained[name] != nil
	f.mu.Unlock()
	info, err := os.Lstat(filepath.Join(directory, name))
	if counted || err != nil || info.Size() == 0 || !isSpoolName(name) {
		return true
	}
	return f.retain(ctx, name, info.Size())
}

// isSpoolName says whether a file in the spool has a name that this program gives.
func isSpoolName(name string) bool {
	base, _, _ := strings.Cut(name, "-")
	_, err := narinfo.ParsePathHash(base)
	return err == nil
}

func (f *Fetcher) isStale(ctx context.Context, directory, name string) (bool, error) {
	f.mu.Lock()
	_, flying := f.flights[name]
	f.mu.Unlock()
	if flying {
		return false, nil
	}
	info, err := os.Lstat(filepath.Join(directory, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	base, _, _ := strings.Cut(name, "-")
	hash, err := narinfo.ParsePathHash(base)
	if err != nil || !info.Mode().IsRegular() {
		return false, nil // a stranger's
	}
	if f.now().Sub(info.ModTime()) > f.timing.staleAfter {
		return true, nil
	}
	item, err := f.storage.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	for n := range item.Narinfo.Files {
		if item.FileName(n) != "" && spoolKey(item, n) == name {
			return item.HasStored(n) || !item.WithdrawnAt.IsZero(), nil
		}
	}
	return true, nil
}
