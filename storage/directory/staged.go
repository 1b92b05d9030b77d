package directory

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"syscall"
)

// staged is a complete file under a temporary name.
type staged struct {
	d               *Directory
	temporary, name string
	borrowed        fs.FileInfo // of a file of the spool, which keeps its name until Commit; or nil
	done, aborted   bool
}

// Commit implements [bytestore.Staged].
func (s *staged) Commit(context.Context) error {
	return s.commit(func() error {
		err := s.d.root.Rename(s.temporary, s.name)
		if s.borrowed != nil && errors.Is(err, syscall.EXDEV) {
			s.d.cantMove.Store(true) // the next ones are copied
		}
		if err == nil && s.borrowed == nil {
			// rename(2) does nothing if both names refer to the same file.
			_ = s.d.root.Remove(s.temporary)
		}
		return err
	})
}

// CommitNew implements [bytestore.Staged].
func (s *staged) CommitNew(context.Context) error {
	return s.commit(func() error {
		// Unlike rename(2), link(2) fails if the name exists.
		err := s.d.root.Link(s.temporary, s.name)
		if err == nil {
			_ = s.d.root.Remove(s.temporary)
		}
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOTSUP) && !errors.Is(err, syscall.ENOSYS) {
			return err
		}
		// The file system has no hard links.
		if _, err := s.d.root.Lstat(s.name); err == nil {
			return fs.ErrExist
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return s.d.root.Rename(s.temporary, s.name)
	})
}

// commit makes the file visible with the given call.
func (s *staged) commit(call func() error) error {
	if s.aborted {
		return fmt.Errorf("store %s in storage %s: it was aborted", s.name, s.d.name)
	}
	if s.done {
		return nil
	}
	if s.borrowed != nil {
		// Another process may have replaced the file.
		now, err := s.d.root.Lstat(s.temporary)
		if err != nil {
			return s.d.explain("look for", s.temporary, err)
		}
		if !os.SameFile(now, s.borrowed) {
			return fmt.Errorf("store %s in storage %s: %s was replaced by another file", s.name, s.d.name, s.temporary)
		}
	}
	if err := call(); err != nil {
		return s.d.explain("rename "+s.temporary+" to", s.name, err)
	}
	s.done = true
	s.d.touch(path.Dir(s.name))
	if s.borrowed != nil {
		s.d.touch(spoolFolder)
	}
	return nil
}

// Abort implements [bytestore.Staged].
func (s *staged) Abort() {
	if !s.done {
		s.done, s.aborted = true, true
		if s.borrowed != nil {
			return
		}
		_ = s.d.root.Remove(s.temporary)
	}
}
