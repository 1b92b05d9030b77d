package importer

import (
	"context"
	"path/filepath"

	"nar-herder/narinfo"
)

// File is a narinfo file as an import finds it.
type File struct {
	Name string
	// Directories are those in which an import looks for its nars, under the paths in
	// their URLs.
	Directories []string
	root        string
}

// Find calls found for each narinfo file that an import of the names reads: for the named files,
// and for those below named directories with names that end in ".narinfo". The error is the
// context's, or about names that can't be read, after all others.
func Find(ctx context.Context, names []string, found func(File)) error {
	files := make(chan narinfoFile, batchItems)
	var err error
	go func() {
		defer close(files)
		err = walk(ctx, names, files)
	}()
	for file := range files {
		found(File{file.name, file.directories(), file.root})
	}
	return err
}

// Read reads the narinfo, and refuses what an import refuses.
func (f File) Read() (*narinfo.Narinfo, error) { return readNarinfo(narinfoFile{f.Name, f.root}) }

// directories returns the directories to search for nars.
func (f narinfoFile) directories() []string {
	directories := []string{filepath.Dir(f.name)}
	if f.root != directories[0] {
		directories = append(directories, f.root)
	}
	return directories
}
