package main

import (
	"fmt"
	"log/slog"

	"nar-herder/internal/disk"
	"nar-herder/storage/location"
	"nar-herder/storage/tiered"
)

// storageCache returns the options of the cache in front of the storage, or nil without one.
func (c *serverCommand) storageCache(log *slog.Logger) (*tiered.Options, error) {
	if c.StorageCache == "" {
		return nil, nil
	}
	if c.Storage == "" {
		return nil, usagef("--storage-cache needs a storage: add --storage")
	}
	if c.StorageCacheSize <= 0 {
		return nil, usagef("--storage-cache-size: give a number of bytes above 0")
	}
	if directory := location.Directory(c.Storage); directory != "" {
		overlap, err := disk.Overlap(directory, c.StorageCache)
		if err != nil {
			return nil, fmt.Errorf("--storage-cache: %w", err)
		}
		if overlap {
			return nil, usagef("--storage-cache=%s overlaps the storage %s, and the cache deletes files: name a directory apart from it", c.StorageCache, c.Storage)
		}
	}
	if err := disk.MkdirAll(c.StorageCache, 0o755); err != nil {
		return nil, fmt.Errorf("--storage-cache: %w", err)
	}
	return &tiered.Options{Directory: c.StorageCache, MaxSize: int64(c.StorageCacheSize), Log: log}, nil
}
