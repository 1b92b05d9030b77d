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

// User is the process that holds a [Lock].
type User struct {
	Owner
	PID     int    `json:"pid"`
	Address string `json:"address,omitempty"`
}

// InUseError means that another process or instance holds a lock.
type InUseError struct {
	// Path is the lock file.
	Path string
	User
	// IsRunning is false if the process has ended, but belonged to another instance.
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

// Lock excludes other processes of this machine until it is closed or the process ends,
// and other instances permanently.
type Lock struct {
	// Unlocked is not nil if other processes are not excluded: the file system is full or
	// read-only, or doesn't support locks.
	Unlocked error

	file *os.File // nil if it could not be created
	user User
}

// NewLock locks a file, and writes this process and instance into it. The error is an
// [*InUseError] if another process has the lock, or another instance had it. If the
// instance id is "", other instances don't matter.
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

// NewDatabaseLock is NewLock for the file DATABASE.lock, without symbolic links in
// DATABASE. If the file can't be created, it locks the directory, so that two servers of
// one database can't start on a full disk either.
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

// isUnwritable reports whether the file system is full or read-only.
func isUnwritable(err error) bool { return disk.IsFull(err) || errors.Is(err, unix.EROFS) }

// flock returns 0 for success, and EWOULDBLOCK if another process has the lock.
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
		// NFS without a lock daemon, or with a file that is open for reading only.
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
		// Maybe the owner file of a storage, by an earlier version.
		if user.Owner, jsonErr = parse(strings.TrimSpace(string(text))); jsonErr != nil {
			return fmt.Errorf("%s is not a lock file of this program: remove it, or name another one", path)
		}
	}
	// A moved database keeps its id, and a new one may replace it.
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

// write writes the file. A full disk or a file of another user is not an error, as the
// content is only for messages.
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

// Close unlocks the file without removing it.
func (l *Lock) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
