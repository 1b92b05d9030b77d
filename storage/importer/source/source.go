// Package source opens and removes the nars in the directories that items are imported from.
package source

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"syscall"

	"nar-herder/storage/bytestore"
)

// Place is where a nar may be: Name below Directory. Nothing outside of the directory is read
// or removed, wherever links lead.
type Place struct{ Directory, Name string }

func (p Place) String() string { return path.Join(p.Directory, p.Name) }

// File is a nar, open for reading.
type File struct {
	*os.File
	Size int64
	// IsLink means that the name is a symbolic link: moving it would leave its target.
	IsLink bool
	// IsInUse means that the directory is a storage or an export, so its nars are served.
	IsInUse bool
}

// Open opens the nar. want is its length, negative if unknown. The error is [fs.ErrNotExist]
// if there is no such file, and [bytestore.ErrWrongSize] if it has another length.
func (p Place) Open(want int64) (*File, error) {
	root, err := os.OpenRoot(p.Directory)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	// Without O_NONBLOCK, opening a pipe would block for ever.
	opened, err := root.OpenFile(p.Name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	file := &File{File: opened}
	info, err := opened.Stat()
	switch {
	case err != nil:
	case !info.Mode().IsRegular():
		err = fmt.Errorf("%s is not a regular file", p)
	case want >= 0 && info.Size() != want:
		err = fmt.Errorf("%w: %s has %d bytes, the narinfo says %d", bytestore.ErrWrongSize, p, info.Size(), want)
	}
	if err != nil {
		opened.Close()
		return nil, err
	}
	file.Size = info.Size()
	named, err := root.Lstat(p.Name)
	file.IsLink = err != nil || !os.SameFile(named, info)
	file.IsInUse = slices.ContainsFunc([]string{bytestore.OwnerName, bytestore.IdentityName, bytestore.ExportName}, func(name string) bool {
		_, err := root.Lstat(name)
		return err == nil
	})
	return file, nil
}

// Remove removes the file. It is not an error if it doesn't exist.
func (p Place) Remove() error {
	root, err := os.OpenRoot(p.Directory)
	if err == nil {
		err = errors.Join(root.Remove(p.Name), root.Close())
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
