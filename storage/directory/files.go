package directory

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// reader is a [storage.LocalFile].
type reader struct {
	*os.File
	offset int64
}

// open opens a regular file for reading, and describes it.
func (d *Directory) open(name string) (*os.File, *unix.Stat_t, error) {
	file, err := d.openForReading(name)
	if err != nil {
		return nil, nil, d.explain("open", name, err)
	}
	stat := new(unix.Stat_t)
	err = unix.Fstat(int(file.Fd()), stat)
	if err != nil {
		err = d.explain("open", name, os.NewSyscallError("fstat", err))
	} else if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		err = d.irregular(name)
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, stat, nil
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.ReadAt(p, r.offset)
	r.offset += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Local implements [storage.LocalFile].
func (r *reader) Local() (*os.File, int64) { return r.File, r.offset }

// Close implements [io.Closer]. A second call does nothing.
func (r *reader) Close() error {
	if err := r.File.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}
