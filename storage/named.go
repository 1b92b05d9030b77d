package storage

import "context"

// FileUnder returns the item that has a file under the name, and which of its
// files that is; [ErrNotFound] when there certainly is none. Whether the file is
// recorded as stored, the item says.
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
