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
	borrowed        fs.FileInfo // of a file of the spool, which keeps its name until the commit; or nil
	done, aborted   bool
}

// Commit implements [bytestore.Staged].
func (s *staged) Commit(context.Context) error {
	return s.commit(func() error {
		err := s.d.root.Rename(s.temporary, s.name)
		if s.borrowed != nil && errors.Is(err, syscall.EXDEV) {
			s.d.cantMove.Store(true) // it will be copied
		}
		if err == nil && s.borrowed == nil {
			// Renaming one name of a file to another of the same file does nothing.
			_ = s.d.root.Remove(s.temporary)
		}
		return err
	})
}

// CommitNew implements [bytestore.Staged].
func (s *staged) CommitNew(context.Context) error {
	return s.commit(func() error {
		// Unlike a rename, a link is refused where the name has a file.
		err := s.d.root.Link(s.temporary, s.name)
		if err == nil {
			_ = s.d.root.Remove(s.temporary)
		}
		if !errors.Is(err, syscall.EPERM) && !errors.Is(err, syscall.ENOTSUP) && !errors.Is(err, syscall.ENOSYS) {
			return err
		}
		// A file system without links.
		if _, err := s.d.root.Lstat(s.name); err == nil {
			return fs.ErrExist
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return s.d.root.Rename(s.temporary, s.name)
	})
}

// commit gives what is staged its name, by the given call.
func (s *staged) commit(call func() error) error {
	if s.aborted {
		return fmt.Errorf("store %s in storage %s: it was aborted", s.name, s.d.name)
	}
	if s.done {
		return nil
	}
	if s.borrowed != nil {
		// Another process may have taken the name away, and made a new file of it.
		now, err := s.d.root.Lstat(s.temporary)
		if err != nil {
			return s.d.explain("look for", s.temporary, err)
		}
		if !os.SameFile(now, s.borrowed) {
			return fmt.Errorf("store %s in storage %s: %s is another file by now", s.name, s.d.name, s.temporary)
		}
	}
	if err := call(); err != nil {
		return s.d.explain("give "+s.temporary+" the name", s.name, err)
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
