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
	text := rand.Text() + "\n"
	staged, err := s.bytes.Stage(ctx, IdentityName, strings.NewReader(text), int64(len(text)))
	if err == nil {
		err = errors.Join(staged.Commit(ctx), s.bytes.Sync(ctx))
	}
	if err != nil {
		return "", fmt.Errorf("give storage %s a name: %w", s.bytes, err)
	}
	// Read, as another instance may just have done the same.
	return s.identity(ctx)
}

func (s *Storage) identity(ctx context.Context) (string, error) {
	const most = 100
	reader, _, err := s.bytes.Open(ctx, IdentityName, 0, -1)
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
		return "", fmt.Errorf("%s in storage %s is not what this program writes there: remove it", IdentityName, s.bytes)
	}
	return name, nil
}
