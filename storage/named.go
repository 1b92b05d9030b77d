package storage

import "context"

// KeptApart says that what lies under a name is about one byte store alone, and
// does not belong into another that gets its nars: the name of the store, which
// tells others whether two instances share one, the note of whose it is, and
// what was found to be wrong there.
func KeptApart(name string) bool {
	return name == IdentityName || name == OwnerName || isQuarantined(name)
}

// FileUnder returns the item that has a file under the name, and which of its
// files that is; [ErrNotFound] when there certainly is none. Whether the file is
// recorded as stored, the item says.
func (s *Storage) FileUnder(ctx context.Context, name string) (*Item, int, error) {
	hash := hashInName(name)
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
