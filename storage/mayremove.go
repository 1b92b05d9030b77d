package storage

import (
	"context"
	"fmt"
)

// MayRemove is nil if this instance owns the byte store and the byte store is certainly
// the one that the index is about. An empty directory, on which the file system of the
// byte store is not mounted, is not. Where there is no owner yet, this instance becomes
// the owner, unless it is a dry run. Without a byte store it is nil.
func (s *Storage) MayRemove(ctx context.Context, dry bool) error {
	if s.bytes == nil || !dry {
		return s.MayDelete(ctx)
	}
	if s.IsFrontEnd() {
		return s.notOwner("the one that this one mirrors")
	}
	owner, err := s.Owner(ctx)
	if err != nil {
		return fmt.Errorf("find out which instance storage %s belongs to: %w", s.bytes, err)
	}
	switch owner {
	case s.Instance():
		return nil
	case "":
	default:
		return s.notOwner("instance " + owner)
	}
	totals, err := s.index.Totals(ctx)
	if err == nil && totals.StoredNars == 0 {
		return s.isEmpty(ctx)
	}
	if err == nil {
		err = s.isThere(ctx)
	}
	if err != nil {
		return fmt.Errorf("find out which instance storage %s belongs to: %w", s.bytes, err)
	}
	return nil
}
