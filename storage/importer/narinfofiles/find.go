// Package narinfofiles finds narinfo files in directories, and reads them.
package narinfofiles

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// File is a narinfo file.
type File struct {
	Name string
	root string // the directory that was named
}

// ahead is how many files are found before the first is read.
const ahead = 5_000

// Directories are those in which an import looks for the file's nars, under the paths in their
// URLs.
func (f File) Directories() []string {
	directories := []string{filepath.Dir(f.Name)}
	if f.root != directories[0] {
		directories = append(directories, f.root)
	}
	return directories
}

// Find calls found for each narinfo file that an import of the names reads: for the named files,
// and for those below named directories with names that end in ".narinfo". The error is the
// context's, or about names that can't be read, after all others.
func Find(ctx context.Context, names []string, found func(File)) error {
	files := make(chan File, ahead)
	var err error
	go func() {
		defer close(files)
		err = Walk(ctx, names, files)
	}()
	for file := range files {
		found(file)
	}
	return err
}

// Walk sends the narinfo files that [Find] finds, until the context ends. It returns errors of directories that can't be read after
// it has walked the others.
func Walk(ctx context.Context, names []string, found chan<- File) error {
	var failures []error
	for _, name := range names {
		info, err := os.Stat(name)
		if err != nil {
			failures = append(failures, err)
			continue
		}
		if !info.IsDir() {
			select {
			case found <- File{name, filepath.Dir(name)}:
			case <-ctx.Done():
				return ctx.Err()
			}
			continue
		}
		// The slash makes WalkDir follow a link to a directory.
		err = filepath.WalkDir(name+string(filepath.Separator), func(file string, entry fs.DirEntry, err error) error {
			if err != nil {
				failures = append(failures, err)
				return nil
			}
			if entry.IsDir() || !strings.HasSuffix(file, ".narinfo") {
				return nil
			}
			select {
			case found <- File{file, name}:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
		if err != nil {
			return err
		}
	}
	return errors.Join(failures...)
}
