package tiered

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
)

// keep fetches the content into a file, and makes that a copy.
func (t *Tiered) keep(e *entry, f *fill, source io.Reader) (err error) {
	size := e.content.size
	need := (size+block-1)/block*block + block
	if !t.makeRoom(need) {
		return errNoRoom
	}
	t.mu.Lock()
	e.taken = need // the last user releases it
	t.mu.Unlock()
	file, err := t.create(size)
	if err != nil {
		return localError{disk.Cause(err)}
	}
	t.mu.Lock()
	e.file = file // the last user closes it
	t.mu.Unlock()
	defer func() {
		if err == nil {
			return
		}
		var local localError
		if errors.As(err, &local) {
			// The bytes on the disk may be wrong, too.
			f.mu.Set(func() { f.have = 0; f.err = err })
		}
		_ = os.Remove(file.Name())
	}()
	if size >= writtenOut {
		defer disk.WriteOut(file.Name())()
	}
	if err := t.copy(f, file, source, size); err != nil {
		return err
	}
	return t.show(e, file)
}

// create creates a file, and reserves disk space for it if the file system supports that.
// If the disk is full although the cache isn't, it evicts copies.
func (t *Tiered) create(size int64) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(t.filling(), rand.Text()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	disk.Inherit(file.Name(), disk.GroupReads)
	if size == 0 {
		return file, nil
	}
	for freed := int64(0); ; {
		err = unix.Fallocate(int(file.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		switch {
		case err == unix.EINTR:
			continue
		case err == nil || err == unix.EOPNOTSUPP || err == unix.ENOSYS:
			return file, nil
		case disk.IsFull(err) && freed < 2*size:
			t.making.Lock()
			n := t.evict()
			t.making.Unlock()
			if freed += n; n >= 0 {
				continue
			}
		}
		file.Close()
		_ = os.Remove(file.Name())
		return nil, os.NewSyscallError("fallocate", err)
	}
}

// copy copies the source to the file.
func (t *Tiered) copy(f *fill, file *os.File, source io.Reader, size int64) error {
	buffer := make([]byte, min(piece, size+1))
	for have := int64(0); ; {
		n, err := source.Read(buffer)
		if have+int64(n) > size {
			return fmt.Errorf("read %s in storage %s: got more than its %d bytes", f.name, t.Store, size)
		}
		if n > 0 {
			if _, err := t.writeAt(file, buffer[:n], have); err != nil {
				return localError{disk.Cause(err)}
			}
			have += int64(n)
			f.mu.Set(func() { f.have = have })
			t.metrics.fetched.Add(int64(n))
		}
		switch {
		case err == io.EOF:
			return nil // fillSource returns EOF only at the end
		case err != nil:
			return err
		}
	}
}

// show renames the file to the name of the copy. It flushes the file first: otherwise,
// after a loss of power, a file of the right length might contain zeros.
func (t *Tiered) show(e *entry, file *os.File) error {
	if err := file.Sync(); err != nil {
		return localError{disk.Cause(err)}
	}
	t.mu.Lock()
	now := t.now()
	dropped := e.dropped
	t.mu.Unlock()
	if dropped {
		return errUnwanted
	}
	if err := os.Chtimes(file.Name(), now, now); err != nil {
		return localError{disk.Cause(err)}
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return localError{err}
	}
	if stat.Size != e.content.size {
		return localError{fmt.Errorf("it has %d bytes, but %d were written", stat.Size, e.content.size)}
	}
	path := t.path(e)
	err := os.Rename(file.Name(), path)
	if errors.Is(err, os.ErrNotExist) {
		if err = disk.MkdirAll(filepath.Dir(path), 0o755); err == nil {
			err = os.Rename(file.Name(), path)
		}
	}
	if err != nil {
		return localError{disk.Cause(err)}
	}
	t.mu.Lock()
	if e.dropped {
		t.mu.Unlock()
		_ = os.Remove(path)
		return errUnwanted
	}
	e.kept, e.fill = true, nil
	e.touched = t.seconds(now)
	t.taken += blocksOf(&stat) - e.taken
	e.taken = blocksOf(&stat)
	t.mu.Unlock()
	t.metrics.filled.Add(1)
	t.makeRoom(0) // it may use more than was reserved
	return nil
}
