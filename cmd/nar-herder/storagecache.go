package main

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"nar-herder/storage/tiered"
)

// storageCache makes the options of the cache in front of the storage; nil where none
// is named.
func (c *serverCommand) storageCache() (*tiered.Options, error) {
	if c.StorageCache == "" {
		return nil, nil
	}
	if c.Storage == "" {
		return nil, errors.New("--storage-cache: there is no storage to cache: add --storage")
	}
	if c.StorageCacheSize <= 0 {
		return nil, errors.New("--storage-cache-size: the cache needs one: name a number of bytes above 0")
	}
	if lies := localDirectory(c.Storage); lies != "" && overlaps(lies, c.StorageCache) {
		return nil, fmt.Errorf("--storage-cache=%s and the storage %s lie within each other, but files are deleted here that narinfos name there: name another directory", c.StorageCache, c.Storage)
	}
	return &tiered.Options{Directory: c.StorageCache, MaxSize: int64(c.StorageCacheSize)}, nil
}

// overlaps says whether one of the directories lies in the other, by their names and
// by where links lead. The second need not be there yet.
func overlaps(a, b string) bool {
	within := func(inner, outer string) bool {
		path, err := filepath.Rel(outer, inner)
		return err == nil && path != ".." && !strings.HasPrefix(path, "../")
	}
	a, b = whereLinksLead(a), whereLinksLead(b)
	return within(a, b) || within(b, a)
}

// whereLinksLead resolves as much of a name as there is.
func whereLinksLead(name string) string {
	name, err := filepath.Abs(name)
	if err != nil {
		return name
	}
	rest := ""
	for parent := name; ; parent = filepath.Dir(parent) {
		if resolved, err := filepath.EvalSymlinks(parent); err == nil {
			return filepath.Join(resolved, rest)
		}
		if parent == filepath.Dir(parent) {
			return name
		}
		rest = filepath.Join(filepath.Base(parent), rest)
	}
}
