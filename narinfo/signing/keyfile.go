package signing

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// ReadPrivateKey reads a private key from a file that other users can neither read nor change.
func ReadPrivateKey(path string) (*PrivateKey, error) {
	text, mode, err := readFile(path, maxPrivateKeySize)
	if err != nil {
		return nil, fmt.Errorf("read private key: %w", err)
	}
	// Parse it first: chmod is no help if it isn't a private key.
	key, err := ParsePrivateKey(text)
	if err == nil && mode&0o077 != 0 {
		err = fmt.Errorf("its mode %04o lets other users read or change it: run chmod 600 %q, and replace the key if others may have read it", mode, path)
	}
	if err != nil {
		return nil, fmt.Errorf("read private key: %s: %w", path, err)
	}
	return key, nil
}

// readFile reads a regular file, or a symbolic link to one, and returns its permissions. It reads
// at most one byte above the limit.
func readFile(path string, limit int64) (text []byte, mode os.FileMode, err error) {
	// Opening a FIFO must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	switch {
	case !info.Mode().IsRegular():
		err = fmt.Errorf("must be a regular file, is %s", kind(info.Mode()))
	case info.Size() == 0:
		err = errors.New("is empty")
	}
	if err != nil {
		return nil, 0, fmt.Errorf("%s: %w", path, err)
	}
	text, err = io.ReadAll(io.LimitReader(f, limit+1))
	return text, info.Mode().Perm(), err
}

func kind(mode os.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&os.ModeNamedPipe != 0:
		return "a FIFO"
	default:
		return "a device"
	}
}

// WriteKeyPair writes a new key to two files that must not exist: the private key with mode
// 0600, and the public key with mode 0644. If it fails, it leaves neither behind.
func WriteKeyPair(key *PrivateKey, private, public string) error {
	if filepath.Clean(private) == filepath.Clean(public) {
		return fmt.Errorf("%s: the private and the public key need different files", private)
	}
	if err := writeNew(private, key.Private(), 0o600); err != nil {
		return err
	}
	if err := writeNew(public, key.Public(), 0o644); err != nil {
		return errors.Join(err, os.Remove(private))
	}
	return nil
}

// writeNew writes a file that must not exist.
func writeNew(path, text string, mode os.FileMode) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists; keys are never overwritten: name another file, or move it away", path)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	if err := f.Chmod(mode); err != nil { // whatever the umask
		return err
	}
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return syncDirectory(filepath.Dir(path))
}

func syncDirectory(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
