// Package narinfofiles finds narinfo files in directories, and reads them.
package narinfofiles

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nar-herder/storage/importer/publishcache"
	"nar-herder/storage/importer/source"
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

// PublishCache returns the cache of 'guix publish' that the file is in, "" for none.
func (f File) PublishCache() string { return publishcache.Of(f.Name) }

// Places returns where the file's nar with a name in storages may be, in the order in which an
// import looks.
func (f File) Places(nar string) []source.Place {
	return Places(nar, f.Directories(), f.PublishCache())
}

// Places is [File.Places] for the results of [File.Directories] and [File.PublishCache].
func Places(nar string, directories []string, publishCache string) (places []source.Place) {
	for _, directory := range directories {
		places = append(places, source.Place{Directory: directory, Name: nar})
	}
	if publishCache == "" {
		return places
	}
	for _, name := range publishcache.Names(nar) {
		place := source.Place{Directory: publishCache, Name: name}
		if name != nar || !contains(directories, publishCache) {
			places = append(places, place)
		}
	}
	return places
}

func contains(directories []string, directory string) bool {
	for _, other := range directories {
		if filepath.Clean(other) == filepath.Clean(directory) {
			return true
		}
	}
	return false
}

// Find calls found for each narinfo file: for the named files, and for those below named
// directories with names that end in ".narinfo". The error is the context's, or about names
// that can't be read, after all others.
func Find(ctx context.Context, names []string, found func(File)) error {
	return each(func(files chan<- File) error { return walk(ctx, names, true, files) }, found)
}

// FindItems is Find with only one narinfo for each item of a publish cache; see
// [publishcache.IsDuplicate].
func FindItems(ctx context.Context, names []string, found func(File)) error {
	return each(func(files chan<- File) error { return WalkItems(ctx, names, files) }, found)
}

// each calls found for the files that walk sends.
func each(walk func(chan<- File) error, found func(File)) error {
	files := make(chan File, ahead)
	var err error
	go func() {
		defer close(files)
		err = walk(files)
	}()
	for file := range files {
		found(file)
	}
	return err
}

// WalkItems sends the files of [FindItems], until the context ends. It returns errors of
// directories that can't be read after it has walked the others.
func WalkItems(ctx context.Context, names []string, found chan<- File) error {
	return walk(ctx, names, false, found)
}

func walk(ctx context.Context, names []string, duplicates bool, found chan<- File) error {
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
		beside := besides{root: filepath.Clean(name)}
		// The slash makes WalkDir follow a link to a directory.
		err = filepath.WalkDir(name+string(filepath.Separator), func(file string, entry fs.DirEntry, err error) error {
			if err != nil {
				failures = append(failures, err)
				return nil
			}
			if entry.IsDir() && entry.Name() == publishcache.Hashes && len(publishcache.Types(filepath.Dir(file))) > 0 {
				return fs.SkipDir
			}
			if entry.IsDir() || !strings.HasSuffix(file, ".narinfo") {
				return nil
			}
			if !duplicates && publishcache.IsDuplicate(file, beside.of(file)) {
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

// besides remembers the directories that may have other narinfos of an item, for the directory
// of the last file.
type besides struct {
	root      string
	directory string
	others    []string
}

// of returns the directories of the file's publish cache, if they are all walked.
func (b *besides) of(file string) []string {
	if publishcache.Of(file) == "" {
		return nil
	}
	directory := filepath.Dir(file)
	if directory == b.directory {
		return b.others
	}
	b.directory, b.others = directory, nil
	if directory != b.root {
		b.others = publishcache.Types(filepath.Dir(directory))
	}
	return b.others
}
