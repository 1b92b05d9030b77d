package main

import (
	"fmt"

	"nar-herder/internal/disk"
	"nar-herder/storage/location"
	"nar-herder/storage/tiered"
)

// storageCache makes the options of the cache in front of the storage; nil where none
// is named.
func (c *serverCommand) storageCache() (*tiered.Options, error) {
	if c.StorageCache == "" {
		return nil, nil
	}
	if c.Storage == "" {
		return nil, usagef("--storage-cache: there is no storage to cache: add --storage")
	}
	if c.StorageCacheSize <= 0 {
		return nil, usagef("--storage-cache-size: the cache needs one: name a number of bytes above 0")
	}
	if lies := location.Directory(c.Storage); lies != "" {
		overlap, err := disk.Overlap(lies, c.StorageCache)
		if err != nil {
			return nil, fmt.Errorf("--storage-cache: %w", err)
		}
		if overlap {
			return nil, usagef("--storage-cache=%s and the storage %s lie within each other, but files are deleted here that narinfos name there: name another directory", c.StorageCache, c.Storage)
		}
	}
	if err := disk.MkdirAll(c.StorageCache, 0o755); err != nil {
		return nil, fmt.Errorf("--storage-cache: %w", err)
	}
	return &tiered.Options{Directory: c.StorageCache, MaxSize: int64(c.StorageCacheSize)}, nil
}
