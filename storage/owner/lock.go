package owner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
)

// User is the process that has a [Lock].
type User struct {
	Owner
	PID     int    `json:"pid"`
	Address string `json:"address,omitempty"`
}

// InUseError says that another process, or another instance, uses what a lock protects.
type InUseError struct {
	// Path is the lock file.
	Path string
	User
	// IsRunning is false where the process has ended, and the instance is another.
	IsRunning bool
}

func (e *InUseError) Error() string {
	if !e.IsRunning {
		return fmt.Sprintf("it belongs to %s: name another one, or, if that instance no longer uses it, remove %s", e.Owner, e.Path)
	}
	s := "another process has locked " + e.Path
	if e.PID != 0 {
		s = fmt.Sprintf("it is in use by process %d on host %s", e.PID, e.Host)
	}
	if e.Address != "" {
		s += " at " + e.Address
	}
	if e.Instance != "" {
		s += ", of " + e.Owner.String()
	}
	return s + ": stop that process, or name another one"
}

// Lock protects something on this machine from other processes, until it is closed or
// the process ends, and from other instances for good.
type Lock struct {
	// Unlocked is why other processes are not kept away: the file system is full or
	// read-only, or knows no locks. It is nil where they are.
	Unlocked error

	file *os.File // nil where it could not be made
	user User
}

// NewLock locks a file, and writes this process and instance into it. Where the id of the
// instance is "", any other may have had the lock. The error is an [*InUseError] where
// that is not possible.
func NewLock(path string, self Owner) (*Lock, error) {
	l := &Lock{user: User{Owner: self, PID: os.Getpid()}}
	file, err := disk.OpenFile(path, os.O_RDWR|unix.O_NOFOLLOW, 0o664, disk.GroupWrites)
	if errors.Is(err, os.ErrPermission) || isUnwritable(err) {
		// It may be another user's.
		if readable, readErr := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0); readErr == nil {
			file, err = readable, nil
		}
	}
	if isUnwritable(err) {
		l.Unlocked = fmt.Errorf("lock it: %w", err)
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("lock it: %w", err)
	}
	l.file = file
	if err := l.take(path); err != nil {
		file.Close()
		return nil, err
	}
	return l, nil
}

// NewDatabaseLock is NewLock for the file DATABASE.lock, where DATABASE is what the name
// of the database leads to. Where the file can't be made, the directory is locked, so
// that two servers of one database can't start on a full disk.
func NewDatabaseLock(database string) (*Lock, error) {
	self := Self("", database)
	l, err := NewLock(self.Database+".lock", self)
	if err != nil {
		return nil, err
	}
	directory, err := os.Open(filepath.Dir(self.Database))
	if err != nil {
		return l, nil
	}
	how := unix.LOCK_SH // another process may have had to lock the directory
	if l.file == nil {
		how = unix.LOCK_EX
	}
	switch err := flock(directory, how); {
	case err == unix.EWOULDBLOCK:
		return nil, errors.Join(&InUseError{Path: directory.Name(), IsRunning: true}, directory.Close(), l.Close())
	case err == 0 && l.file == nil:
		l.Unlocked, l.file = nil, directory
		return l, nil
	}
	return l, directory.Close()
}

// isUnwritable reports whether an error is that of a full or read-only file system.
func isUnwritable(err error) bool { return disk.IsFull(err) || errors.Is(err, unix.EROFS) }

// flock returns 0 for success, and EWOULDBLOCK where another process has the lock.
func flock(file *os.File, how int) unix.Errno {
	err := unix.EINTR
	for err == unix.EINTR {
		err, _ = unix.Flock(int(file.Fd()), how|unix.LOCK_NB).(unix.Errno)
	}
	return err
}

func (l *Lock) take(path string) error {
	err := flock(l.file, unix.LOCK_EX)
	switch err {
	case 0, unix.EWOULDBLOCK:
	case unix.ENOSYS, unix.EOPNOTSUPP, unix.ENOLCK, unix.EBADF:
		// NFS without a lock daemon, or with a file that is open for reading alone.
		l.Unlocked = fmt.Errorf("lock %s: %w", path, err)
		err = 0
	default:
		return fmt.Errorf("lock %s: %w", path, err)
	}
	var user User
	text, readErr := io.ReadAll(io.NewSectionReader(l.file, 0, 1<<16))
	if readErr != nil {
		return fmt.Errorf("read %s: %w", path, readErr)
	}
	// The other process may be writing it.
	if jsonErr := json.Unmarshal(text, &user); jsonErr != nil && len(text) > 0 && err == 0 {
		// A storage has this file, too, maybe of an earlier version.
		if user.Owner, jsonErr = parse(strings.TrimSpace(string(text))); jsonErr != nil {
			return fmt.Errorf("%s is not a lock file of this program: remove it, or name another one", path)
		}
	}
	// A database that was moved keeps its id, and a new one may be in its place.
	isOther := l.user.Instance != "" && user.Instance != "" && user.Instance != l.user.Instance && (user.Database == "" || !user.IsAt(l.user.Owner))
	if err != 0 || isOther {
		return &InUseError{path, user, err != 0}
	}
	return l.write()
}

// SetAddress records where the process listens, for messages.
func (l *Lock) SetAddress(address string) error {
	l.user.Address = address
	return l.write()
}

// write does without what is only for messages on a full disk or a file of another user.
func (l *Lock) write() error {
	if l.file == nil {
		return nil
	}
	text, err := json.Marshal(l.user)
	if err != nil {
		return err
	}
	_, err = l.file.WriteAt(append(text, '\n'), 0)
	if err == nil {
		err = l.file.Truncate(int64(len(text) + 1))
	}
	if isUnwritable(err) || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EBADF) {
		return nil
	}
	return err
}

// Close unlocks the file, which stays.
func (l *Lock) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
