package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/owner"
)

// lock reserves a local file or directory for this process and instance, with a lock file.
// Errors name the option.
func (o *opened) lock(option, path string) error {
	lock, err := owner.NewLock(path, o.self)
	if err != nil {
		return fmt.Errorf("%s: %w", option, err)
	}
	o.locks = append(o.locks, lock)
	warnUnlocked(lock, option, o.log)
	return nil
}

// warnUnlocked logs why a lock has no effect.
func warnUnlocked(lock *owner.Lock, option string, log *slog.Logger) {
	if lock.Unlocked != nil {
		log.Warn("can't lock this file or directory: make sure that no other instance uses it", "option", option, "error", lock.Unlocked)
	}
}

// lockDirectory is lock for a directory.
func (o *opened) lockDirectory(option, name string) error {
	return o.lock(option+name, filepath.Join(name, bytestore.OwnerName))
}

// lockServer locks a database for a server, or for a command that must not run beside one.
func lockServer(database string, log *slog.Logger) (*owner.Lock, error) {
	lock, err := owner.NewDatabaseLock(database)
	var used *owner.InUseError
	if errors.As(err, &used) {
		return nil, fmt.Errorf("--database=%s: %w", database, err)
	} else if err != nil {
		if denied := index.MayWrite(database); denied != nil {
			return nil, fmt.Errorf("--database=%s can't be written: %w", database, denied)
		}
		return nil, fmt.Errorf("--database=%s can't be written: %w: give the user or group of this process write permission for its directory", database, err)
	}
	warnUnlocked(lock, "--database="+database, log)
	return lock, nil
}

// lockDump locks the path of dumps. Processes of the same instance may share it, since dumps
// can be made beside the server.
func (o *opened) lockDump(path string) error {
	err := o.lock("--database-dump="+path, path+".owner")
	var used *owner.InUseError
	if errors.As(err, &used) && used.IsRunning && used.Instance == o.self.Instance && used.IsAt(o.self) {
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil // writing the dump reports this
	}
	return err
}
