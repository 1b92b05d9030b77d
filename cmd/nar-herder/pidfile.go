package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// writePidFile writes the file atomically: a supervisor that waits for it must not read it
// empty.
func writePidFile(name string) error {
	if err := isPidFile(name); err != nil {
		return fmt.Errorf("--pid-file=%s: %w: name another file", name, err)
	}
	temporary, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".")
	if err != nil {
		return fmt.Errorf("--pid-file=%s: %w", name, err)
	}
	_, err = fmt.Fprintln(temporary, os.Getpid())
	err = errors.Join(err, temporary.Chmod(0o644), temporary.Close())
	if err == nil {
		err = os.Rename(temporary.Name(), name)
	}
	if err != nil {
		_ = os.Remove(temporary.Name())
		return fmt.Errorf("--pid-file=%s: %w", name, err)
	}
	return nil
}

// isPidFile returns an error for a file that exists and is not a PID file.
func isPidFile(name string) error {
	info, err := os.Stat(name)
	if err != nil {
		return nil // it does not exist, or writing it will fail too
	}
	if !info.Mode().IsRegular() {
		return errors.New("not a regular file")
	}
	const longest = 32
	var text []byte
	if info.Size() <= longest {
		if text, err = os.ReadFile(name); err != nil {
			return err
		}
	}
	// After a power failure, the file may be empty or hold zero bytes.
	if info.Size() > longest || len(bytes.Trim(text, "0123456789 \n\x00")) > 0 {
		return errors.New("the file exists and does not hold a process id")
	}
	return nil
}

// removePidFile removes the file if it holds the id of this process.
func removePidFile(name string) {
	if isPidFile(name) != nil {
		return // reading a pipe would block
	}
	if text, err := os.ReadFile(name); err == nil && strings.TrimSpace(string(text)) == strconv.Itoa(os.Getpid()) {
		_ = os.Remove(name)
	}
}
