// Package spool keeps partial downloads of nars, so that the next attempt or process resumes
// them. They count for the limits of the storage.
package spool

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/narinfo"
	"nar-herder/storage"
)

// staleAfter is the age at which a file that no download resumes is removed.
const staleAfter = 24 * time.Hour

// Options of [New].
type Options struct {
	Storage *storage.Storage
	// Fallback is the directory of the files if the byte store has none of its own.
	Fallback string
	// InFlight reports whether a file is being downloaded.
	InFlight func(key string) bool
	// Reserve reserves room for so many bytes in the storage until release is called. ok
	// is false if there is none. release is nil if that is not known.
	Reserve func(ctx context.Context, size int64) (release func(), ok bool)
	Now     func() time.Time
}

// Spool has the partial downloads of a storage.
type Spool struct {
	Options
	mu sync.Mutex
	// retained are the files that count for the limits and are not being downloaded.
	retained map[string]retained
}

type retained struct {
	size    int64
	release func()
}

// New makes a spool.
func New(options Options) *Spool {
	return &Spool{Options: options, retained: make(map[string]retained)}
}

// Key returns the name of the spool file of an item's Nth file. It contains the item's hash,
// and a digest of the expected file.
func Key(item *storage.Item, n int) string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%d", item.FileName(n), item.Narinfo.NarHash, item.Narinfo.Files[n].Size))
	return item.Hash.String() + "-" + narinfo.EncodeBase32(sum[:10])
}

// hashOf returns the hash of a key's item. The error says that the name is not a key.
func hashOf(name string) (narinfo.PathHash, error) {
	base, _, _ := strings.Cut(name, "-")
	return narinfo.ParsePathHash(base)
}

// ErrInUse reports that another process writes to a file.
var ErrInUse = errors.New("another process is fetching it into this storage")

// Open opens or creates a file for writing, and locks it until [Unlock] or its closing.
// have is its length.
func (s *Spool) Open(key string) (file *os.File, have int64, err error) {
	directory, err := s.Storage.Spool(s.Fallback)
	if err != nil {
		return nil, 0, err
	}
	name := filepath.Join(directory, key)
	for range 10 {
		file, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o644)
		if errors.Is(err, fs.ErrPermission) {
			// Another user's: lock removes it, unless it is in use.
			file, err = os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
		}
		if err != nil {
			return nil, 0, err
		}
		have, again, err := lock(file)
		if err == nil && !again {
			return file, have, nil
		}
		file.Close()
		if err != nil {
			return nil, 0, err
		}
	}
	return nil, 0, ErrInUse
}

// lock locks a file. again says that the file can't be used, and that its name is free.
func lock(file *os.File) (have int64, again bool, err error) {
	switch err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err {
	case nil:
	case unix.EWOULDBLOCK:
		return 0, false, ErrInUse
	case unix.ENOSYS, unix.ENOLCK, unix.EOPNOTSUPP, unix.EINVAL:
		// A file system without locks: the administrator must not share it.
	default:
		return 0, false, fmt.Errorf("lock %s: %w", file.Name(), err)
	}
	info, err := file.Stat()
	if err != nil {
		return 0, false, err
	}
	named, err := os.Lstat(file.Name())
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, named) {
		return 0, true, nil // the other process has just finished with it
	} else if err != nil {
		return 0, false, err
	}
	if !info.Mode().IsRegular() {
		return 0, false, fmt.Errorf("%s is not a regular file: remove it", file.Name())
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if ok && (stat.Nlink > 1 || os.Geteuid() != 0 && int(stat.Uid) != os.Geteuid()) {
		// Another link may be a stored nar, which must not change. Another user's file
		// would have to be copied into the storage.
		return 0, true, os.Remove(file.Name())
	}
	// The server may run as another user than the administrator's commands.
	err = file.Chmod(0o644)
	disk.Inherit(file.Name(), disk.GroupReads)
	return info.Size(), false, err
}

// Unlock lets another download resume the file, which may be nil.
func Unlock(file *os.File) {
	if file != nil {
		_ = unix.Flock(int(file.Fd()), unix.LOCK_UN) // some file systems have no locks
	}
}

// Drop removes the name of an open file, which may be nil. Readers that have it open
// continue.
func Drop(file *os.File) error {
	if file == nil {
		return nil
	}
	info, err := file.Stat()
	if err != nil {
		return err
	}
	// It may have been moved into the storage, and the name be another process's.
	named, err := os.Lstat(file.Name())
	if err == nil && os.SameFile(info, named) {
		err = os.Remove(file.Name())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Remove removes the file of an item's Nth file, which is stored: a process that was killed
// may have left it, if the storage has made a copy.
func (s *Spool) Remove(item *storage.Item, n int) error {
	directory, err := s.Storage.Spool(s.Fallback)
	if err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(directory, Key(item, n))); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// Retain counts a file for the limits until a download resumes it or it is removed. It
// returns false if there is no room. If that is not known, the file is counted later.
func (s *Spool) Retain(ctx context.Context, key string, size int64) bool {
	release, ok := s.Reserve(ctx, size)
	if !ok || release == nil {
		return ok
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if old, ok := s.retained[key]; ok {
		old.release()
	}
	s.retained[key] = retained{size, release}
	return true
}

// Release ends that, and returns how many bytes were counted.
func (s *Spool) Release(key string) (size int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	file, ok := s.retained[key]
	if ok {
		file.release()
		delete(s.retained, key)
	}
	return file.size
}

// DropStale removes files that no download will resume: those of items that are stored or
// withdrawn, old ones, and those without room.
func (s *Spool) DropStale(ctx context.Context) error {
	if _, err := s.Storage.Identity(ctx); err != nil {
		return err // perhaps it isn't mounted
	}
	directory, err := s.Storage.Spool(s.Fallback)
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
		stale, err := s.isStale(ctx, directory, name)
		if err != nil {
			return err
		}
		if !stale && s.isCounted(ctx, directory, name) {
			continue
		}
		s.Release(name)
		if err := os.Remove(filepath.Join(directory, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// isCounted makes a file count for the limits. It returns false if there is no room.
func (s *Spool) isCounted(ctx context.Context, directory, name string) bool {
	s.mu.Lock()
	_, counted := s.retained[name]
	s.mu.Unlock()
	if counted || s.InFlight(name) {
		return true
	}
	info, err := os.Lstat(filepath.Join(directory, name))
	if _, foreign := hashOf(name); foreign != nil || err != nil || info.Size() == 0 {
		return true
	}
	return s.Retain(ctx, name, info.Size())
}

func (s *Spool) isStale(ctx context.Context, directory, name string) (bool, error) {
	if s.InFlight(name) {
		return false, nil
	}
	info, err := os.Lstat(filepath.Join(directory, name))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	hash, err := hashOf(name)
	if err != nil || !info.Mode().IsRegular() {
		return false, nil // another program's
	}
	if s.Now().Sub(info.ModTime()) > staleAfter {
		return true, nil
	}
	item, err := s.Storage.Item(ctx, hash)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil // its row may be written when it is complete
	} else if err != nil {
		return false, err
	}
	for n := range item.Narinfo.Files {
		if item.FileName(n) != "" && Key(item, n) == name {
			return item.HasStored(n) || !item.WithdrawnAt.IsZero(), nil
		}
	}
	return true, nil
}
