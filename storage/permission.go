package storage

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nar-herder/storage/index"
)

// ErrNotOwner says that only another instance may change the byte store.
var ErrNotOwner = errors.New("the storage belongs to another instance")

// ownerTrust is how long bytes may be added after the owner file was read. Before bytes are
// deleted, it is read each time.
const ownerTrust = 30 * time.Second

// MayDelete returns an error unless this instance may delete or replace files in the byte
// store, which package owner decides. It is [ErrNotOwner] if it certainly may not.
func (s *Storage) MayDelete(ctx context.Context) error {
	switch {
	case s.bytes == nil:
		return nil
	case s.readOnly:
		return fmt.Errorf("%w, or to none: this server only reads it (--storage-read-only)", ErrNotOwner)
	case s.mayWrite != nil:
		if err := s.mayWrite(ctx); err != nil {
			s.checked.Store(nil)
			return err
		}
	}
	now := s.now()
	s.checked.Store(&now)
	return nil
}

// MayAdd is MayDelete for an addition, which may or may not replace files.
func (s *Storage) MayAdd(ctx context.Context, replaces bool) error {
	if checked := s.checked.Load(); checked != nil && !replaces {
		if since := s.now().Sub(*checked); since >= 0 && since < ownerTrust {
			return nil
		}
	}
	return s.MayDelete(ctx)
}

// IsReadOnly reports whether the byte store is only read, as by a front end. Then every
// file that a narinfo names counts as stored until it is looked for. A missing one is not
// a fault: the owner has removed it, or not fetched it yet.
func (s *Storage) IsReadOnly() bool { return s.readOnly }

// IsOurs reports whether this instance owns the byte store.
func (s *Storage) IsOurs(ctx context.Context) bool {
	return s.bytes != nil && s.MayDelete(ctx) == nil
}

// ItemOf parses the narinfo of a row, and marks the item's files as stored if this instance must
// look for them to know. A file of unknown length can't be served.
func (s *Storage) ItemOf(row *index.Item) (*Item, error) {
	item, err := NewItem(row)
	if err != nil || !s.readOnly {
		return item, err
	}
	marked := *row
	for n := range item.names {
		if item.names[n] != "" && item.StoredSize(n) >= 0 {
			marked.Stored |= 1 << n
		}
	}
	item.Item = &marked
	return item, nil
}
