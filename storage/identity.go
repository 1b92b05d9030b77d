package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// Identity returns the random name of the byte store, and creates it if there is none. It is ""
// without a byte store.
func (s *Storage) Identity(ctx context.Context) (string, error) {
	if s.bytes == nil {
		return "", nil
	}
	name, err := s.note(ctx, bytestore.IdentityName)
	if !errors.Is(err, fs.ErrNotExist) || s.readOnly {
		return name, err
	}
	// Create no name if the storage isn't mounted.
	if err := s.IsMounted(ctx); err != nil {
		return "", err
	}
	err = bytestore.WriteNote(ctx, s.bytes.Store, bytestore.IdentityName, rand.Text(), bytestore.Staged.CommitNew)
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	// Read it, because another instance may have just created one.
	return s.note(ctx, bytestore.IdentityName)
}

// StorageName returns the random name of the byte store, "" without one. It writes
// nothing: the error is [fs.ErrNotExist] if the store has no name yet or isn't mounted.
func (s *Storage) StorageName(ctx context.Context) (string, error) {
	if s.bytes == nil {
		return "", nil
	}
	return s.note(ctx, bytestore.IdentityName)
}

// ErrAllMissing is in the error of [Storage.IsMounted] if the byte store can be read.
var ErrAllMissing = errors.New("none of the stored nars are there")

// IsMounted returns an error unless the byte store has any of the files that the index has
// as stored. If the storage isn't mounted, all seem to be missing.
func (s *Storage) IsMounted(ctx context.Context) error {
	totals, err := s.index.Totals(ctx)
	if err != nil || totals.StoredNars == 0 {
		return err
	}
	there, err := s.HasAny(ctx)
	if err == nil && !there {
		err = fmt.Errorf("storage %s: %w: the index has %d: is it mounted? If the nars are lost, as with their disk, run 'nar-herder claim-storage --accept-loss'", s.bytes, ErrAllMissing, totals.StoredNars)
	}
	return err
}

// note reads one of the short texts that are stored beside the nars.
func (s *Storage) note(ctx context.Context, name string) (string, error) {
	return bytestore.ReadNote(ctx, s.bytes.Store, name)
}

// HasAny reports whether any file that the index has as stored exists.
func (s *Storage) HasAny(ctx context.Context) (bool, error) {
	// Usually one of the first items has a file, so no listing is needed.
	looked := 0
	for item, err := range s.Items(ctx) {
		if errors.Is(err, index.ErrDamaged) {
			continue // others are enough
		}
		if err != nil {
			return false, err
		}
		for n, name := range item.names {
			if name == "" || !item.HasStored(n) {
				continue
			}
			if _, err := s.bytes.Stat(ctx, name); err == nil {
				return true, nil
			}
			looked++
		}
		if looked >= 100 {
			break
		}
	}
	for info, err := range s.bytes.List(ctx) {
		if err != nil && info.Name != "" {
			continue // others are enough
		}
		if err != nil {
			return false, err
		}
		if info.Temporary {
			continue
		}
		item, err := s.Item(ctx, HashInName(info.Name))
		if errors.Is(err, ErrNotFound) || errors.Is(err, index.ErrDamaged) {
			continue
		} else if err != nil {
			return false, err
		}
		if n := item.FileNamed(info.Name); n >= 0 && item.HasStored(n) {
			return true, nil
		}
	}
	return false, nil
}
