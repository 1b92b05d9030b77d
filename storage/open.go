package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/readers"
)

// OpenFile opens the item's Nth file: length bytes from offset on, or all that follow if
// length is negative. Without an error, the size is as recorded. [ErrNotStored] says that
// the bytes are certainly not here; any other error is a fault. The caller closes the
// reader, which may be a [bytestore.LocalFile].
func (s *Storage) OpenFile(ctx context.Context, item *Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	if s.bytes == nil || !item.HasStored(n) {
		return nil, bytestore.Info{}, ErrNotStored
	}
	name := item.names[n]
	if name == "" {
		return nil, bytestore.Info{}, ErrNotStored
	}
	if item.Origin == 0 {
		return s.openKnown(ctx, item, n, offset, length)
	}
	release := s.TryHold(item.Hash)
	if release == nil {
		return nil, bytestore.Info{}, ErrNotStored // it is being evicted
	}
	reader, info, err := s.openKnown(ctx, item, n, offset, length)
	if err != nil {
		release()
		return reader, info, err
	}
	return readers.Releasing(reader, release), info, nil
}

// openKnown opens a file that the row has as stored.
func (s *Storage) openKnown(ctx context.Context, item *Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	reader, info, err := s.openWhole(ctx, item, n, offset, length)
	// The row may be newer than a cached copy.
	if reader == nil && info.Name != "" && s.bytes.Invalidate(item.names[n]) {
		reader, info, err = s.openWhole(ctx, item, n, offset, length)
	}
	return reader, info, err
}

// openWhole opens a file and compares its size with the row. If the sizes differ, the info
// describes the stored file.
func (s *Storage) openWhole(ctx context.Context, item *Item, n int, offset, length int64) (io.ReadCloser, bytestore.Info, error) {
	reader, info, err := s.bytes.Open(ctx, item.names[n], offset, length)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, bytestore.Info{}, s.missing(ctx, err)
	}
	if err != nil {
		return nil, bytestore.Info{}, err
	}
	if err := s.sizeMatches(ctx, item, n, info); err != nil {
		reader.Close()
		return nil, info, err
	}
	return reader, info, nil
}

// LookFor returns nil if the item's Nth file is stored with the recorded size. Errors are
// as for [Storage.OpenFile].
func (s *Storage) LookFor(ctx context.Context, item *Item, n int) error {
	if s.bytes == nil || !item.HasStored(n) || item.names[n] == "" {
		return ErrNotStored
	}
	info, err := s.bytes.Stat(ctx, item.names[n])
	if errors.Is(err, fs.ErrNotExist) {
		return s.missing(ctx, err)
	}
	if err != nil {
		return err
	}
	return s.sizeMatches(ctx, item, n, info)
}

// missing is the error for a file that a row claims and that does not exist.
func (s *Storage) missing(ctx context.Context, err error) error {
	return s.mismatch(ctx, fmt.Errorf("%w: %w: see 'nar-herder help import' for adding it again", ErrMismatch, err))
}

// sizeMatches compares a file with its row.
func (s *Storage) sizeMatches(ctx context.Context, item *Item, n int, info bytestore.Info) error {
	if want := item.StoredSize(n); info.Size != want {
		return s.mismatch(ctx, fmt.Errorf("%w: %s in storage %s has %d bytes, the index says %d", ErrMismatch, item.names[n], s.bytes, info.Size, want))
	}
	return nil
}

// mismatch returns the error for a file that differs from its row, or [ErrNotStored] if
// another instance owns the byte store, which has removed or replaced the file.
func (s *Storage) mismatch(ctx context.Context, err error) error {
	if errors.Is(s.MayDelete(ctx), ErrNotOwner) {
		return ErrNotStored
	}
	if ctx.Err() != nil {
		return ctx.Err() // the owner may be unknown
	}
	return err
}
