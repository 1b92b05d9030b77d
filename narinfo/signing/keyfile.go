package signing

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// ReadPrivateKey reads a private key from a regular file, or a symbolic link to one. It refuses
// a file that others may read or write.
func ReadPrivateKey(path string) (*PrivateKey, error) {
	key, err := readPrivateKey(path)
	if err != nil {
		var pathErr *os.PathError
		if errors.As(err, &pathErr) {
			return nil, fmt.Errorf("read private key: %w", err)
		}
		return nil, fmt.Errorf("read private key %s: %w", path, err)
	}
	return key, nil
}

func readPrivateKey(path string) (*PrivateKey, error) {
	// Opening a FIFO must not wait for a writer.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular():
		return nil, fmt.Errorf("must be a regular file, is %s", info.Mode().Type())
	case info.Mode().Perm()&0o077 != 0:
		return nil, fmt.Errorf("its mode %04o lets other users read or change it: run chmod 600 %q, and replace the key if others may have read it", info.Mode().Perm(), path)
	case info.Size() == 0:
		return nil, errors.New("the file is empty")
	}
	text, err := io.ReadAll(io.LimitReader(f, maxPrivateKeySize+1))
	if err != nil {
		return nil, err
	}
	return ParsePrivateKey(text)
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
