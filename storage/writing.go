package storage

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrNotOwner says that only another instance may change the byte store.
var ErrNotOwner = errors.New("the storage belongs to another instance")

// ownerTrust is for how long bytes are added after a look at the owner file. Before
// bytes are deleted, it is read each time.
const ownerTrust = 30 * time.Second

// MayDelete is nil when this instance may delete from the byte store, or replace
// what is there. The error is [ErrNotOwner] when it certainly may not.
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

// MayAdd is MayDelete for what may replace something, or surely replaces nothing.
func (s *Storage) MayAdd(ctx context.Context, replaces bool) error {
	if checked := s.checked.Load(); checked != nil && !replaces {
		if since := s.now().Sub(*checked); since >= 0 && since < ownerTrust {
			return nil
		}
	}
	return s.MayDelete(ctx)
}

// IsReadOnly says whether the byte store is only read, as by a front end. Then each
// file that a narinfo names counts as stored until it is looked for, and it is not a
// fault when it is missing: the owner has removed it, or has not fetched it yet.
func (s *Storage) IsReadOnly() bool { return s.readOnly }

// IsOurs says whether this instance decides what is removed from the byte store.
func (s *Storage) IsOurs(ctx context.Context) bool {
	return s.bytes != nil && s.MayDelete(ctx) == nil
}

// asReadOnly makes an item's files count as stored where this instance can only find
// out by looking for them. One of unknown length can't be served from here.
func (s *Storage) asReadOnly(item *Item) *Item {
	if !s.readOnly {
		return item
	}
	row := *item.Item
	for n := range item.names {
		if item.names[n] != "" && item.StoredSize(n) >= 0 {
			row.Stored |= 1 << n
		}
	}
	return &Item{Item: &row, Narinfo: item.Narinfo, names: item.names}
}
