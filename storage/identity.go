package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
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
	name, err := s.identity(ctx)
	if !errors.Is(err, fs.ErrNotExist) {
		return name, err
	}
	// Not where a storage should be mounted and isn't.
	if err := s.isThere(ctx); err != nil {
		return "", err
	}
	text := rand.Text() + "\n"
	staged, err := s.bytes.Stage(ctx, IdentityName, strings.NewReader(text), int64(len(text)))
	if err == nil {
		defer staged.Abort()
		if err = staged.Commit(ctx); err == nil {
			err = s.bytes.Sync(ctx)
		}
	}
	if err != nil {
		return "", fmt.Errorf("give storage %s a name: %w", s.bytes, err)
	}
	// Read, as another instance may just have done the same.
	return s.identity(ctx)
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

func (s *Storage) identity(ctx context.Context) (string, error) { return ReadIdentity(ctx, s.bytes) }

// ReadIdentity returns the random name of a byte store, and gives it none: where
// it has none, the error is [fs.ErrNotExist].
func ReadIdentity(ctx context.Context, store ByteStore) (string, error) {
	const most = 100
	reader, _, err := store.Open(ctx, IdentityName, 0, -1)
	if err != nil {
		return "", err
	}
	defer reader.Close()
	text, err := io.ReadAll(io.LimitReader(reader, most))
	if err != nil {
		return "", err
	}
	name := strings.TrimSpace(string(text))
	if name == "" || len(text) == most {
		return "", fmt.Errorf("%s in storage %s is not what this program writes there: remove it", IdentityName, store)
	}
	return name, nil
}
