package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
)

// IdentityName is where a byte store keeps its random name. Instances that share
// a storage find the same one there.
const IdentityName = "nar-herder-storage"

// Identity returns the random name of the byte store, and gives it one when it
// has none. It is "" where nars are kept elsewhere.
func (s *Storage) Identity(ctx context.Context) (string, error) {
	if s.bytes == nil {
		return "", nil
	}
	name, err := s.note(ctx, IdentityName)
	if !errors.Is(err, fs.ErrNotExist) {
		return name, err
	}
	// Not where a storage should be mounted and isn't.
	if err := s.isThere(ctx); err != nil {
		return "", err
	}
	if err := s.writeFirstNote(ctx, IdentityName, rand.Text()); err != nil {
		return "", err
	}
	// Read, as another instance may just have done the same.
	return s.note(ctx, IdentityName)
}

// StorageName returns the random name of the byte store, "" where nars are kept
// elsewhere. It writes nothing: the error is [fs.ErrNotExist] where there is none,
// be it that none was given yet or that the storage isn't mounted.
func (s *Storage) StorageName(ctx context.Context) (string, error) {
	if s.bytes == nil {
		return "", nil
	}
	return s.note(ctx, IdentityName)
}

// isThere makes sure that the byte store is the one that the index is about, by
// any of the files that it should have. A storage that isn't mounted looks like
// one whose files are all missing.
func (s *Storage) isThere(ctx context.Context) error {
	totals, err := s.index.Totals(ctx)
	if err != nil || totals.StoredNars == 0 {
		return err
	}
	there, err := s.hasAny(ctx)
	if err == nil && !there {
		err = fmt.Errorf("storage %s has none of the files that the index has there: is it mounted?", s.bytes)
	}
	return err
}
