package storage

import "context"

// FileUnder returns the item that has a file with the name, and which of its files that
// is. The error is [ErrNotFound] if there certainly is none. The file need not be stored.
func (s *Storage) FileUnder(ctx context.Context, name string) (*Item, int, error) {
	hash := HashInName(name)
	item, err := s.Item(ctx, hash)
	if err != nil {
		return nil, -1, err
	}
	n := item.FileNamed(name)
	if n < 0 {
		return nil, -1, ErrNotFound
	}
	return item, n, nil
}
