package files

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"syscall"

	"nar-herder/internal/disk"
	"nar-herder/peer"
	"nar-herder/storage"
)

// folder is a directory with nars at the paths of their URLs. It is opened for each file, as it
// may be mounted later, or again.
type folder string

// String is the URL.
func (f folder) String() string { return peer.Name(&url.URL{Scheme: "file", Path: string(f)}) }

// IsResting is for [failover.Server]: a directory answers at once.
func (folder) IsResting() bool { return false }

// HasFailed is for [failover.Server].
func (folder) HasFailed() bool { return false }

// OpenFile is for [failover.Server].
func (f folder) OpenFile(_ context.Context, item *storage.Item, n int, offset, length int64, _ []string) (io.ReadCloser, int64, error) {
	file, size, err := f.open(item, n)
	if err != nil {
		return nil, 0, err
	}
	left := max(size-offset, 0)
	if length >= 0 {
		left = min(left, length)
	}
	return part{io.NewSectionReader(file, offset, left), file}, size, nil
}

type part struct {
	io.Reader
	io.Closer
}

// Locate is for [failover.Server]. Clients can't be redirected to a directory.
func (f folder) Locate(_ context.Context, item *storage.Item, n int, _ []string) (string, [16]byte, error) {
	file, _, err := f.open(item, n)
	if err != nil {
		return "", [16]byte{}, err
	}
	return "", [16]byte{}, file.Close()
}

// open opens the item's Nth file.
func (f folder) open(item *storage.Item, n int) (_ *os.File, size int64, err error) {
	name := item.FileName(n)
	if name == "" {
		return nil, 0, storage.ErrNotStored
	}
	defer func() {
		if err != nil && !errors.Is(err, storage.ErrNotStored) {
			err = fmt.Errorf("open %s in %s: %w", name, f, disk.Cause(err))
		}
	}()
	root, err := os.OpenRoot(string(f))
	if err != nil {
		return nil, 0, err
	}
	defer root.Close() // the open file remains readable
	// Without O_NONBLOCK, opening a named pipe would block forever.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
		return nil, 0, absent(root)
	} else if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if want := item.StoredSize(n); err == nil && want >= 0 && info.Size() != want {
		err = fmt.Errorf("wrong size: %d bytes, the narinfo says %d", info.Size(), want)
	}
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// absent returns [storage.ErrNotStored] for a file that a directory doesn't have. It returns
// another error for an empty directory, since the mount point of a disk is empty while the disk
// is not mounted.
func absent(root *os.Root) error {
	all, err := root.Open(".")
	if err != nil {
		return err
	}
	defer all.Close()
	switch _, err := all.Readdirnames(1); err {
	case nil:
		return storage.ErrNotStored
	case io.EOF:
		return errors.New("the directory is empty: is it mounted?")
	default:
		return err
	}
}
