package directory

import (
	"os"

	"golang.org/x/sys/unix"
)

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
