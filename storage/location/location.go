// Package location opens a byte store by its location: a local directory, or the URL of a
// bucket.
package location

import (
	"context"
	"io"
	"log/slog"
	"strings"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/directory"
	"nar-herder/storage/s3"
)

// Store is a byte store that must be closed.
type Store interface {
	bytestore.Store
	io.Closer
}

// IsBucket reports whether a location is the URL of a bucket.
func IsBucket(location string) bool { return strings.HasPrefix(location, "s3:") }

// Directory returns the directory of a location, or "" for a bucket.
func Directory(location string) string {
	if IsBucket(location) {
		return ""
	}
	return location
}

// Validate checks the syntax of a location.
func Validate(location string) error {
	if !IsBucket(location) {
		return nil
	}
	return s3.Validate(location)
}

// Open opens the byte store at a location.
func Open(ctx context.Context, location string, log *slog.Logger) (Store, error) {
	// A nil *s3.Store or *directory.Directory would not be a nil Store.
	if IsBucket(location) {
		bucket, err := s3.Open(ctx, location, s3.Options{Log: log})
		if err != nil {
			return nil, err
		}
		return bucket, nil
	}
	files, err := directory.Open(location)
	if err != nil {
		return nil, err
	}
	return files, nil
}
