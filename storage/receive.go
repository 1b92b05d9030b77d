package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"

	"nar-herder/internal/disk"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/storage/space"
)

// ErrNotWanted says that bytes are not needed any more: the item was removed, withdrawn or
// replaced meanwhile, or the file was dropped.
var ErrNotWanted = errors.New("the item was removed, withdrawn or replaced meanwhile, or the file dropped")

// Spool returns a directory for files that will be passed to [Storage.Receive]: the byte
// store's own, or else the fallback, which is made.
func (s *Storage) Spool(fallback string) (directory string, err error) {
	if s.bytes != nil {
		if directory, err = s.bytes.Spool(); !errors.Is(err, errors.ErrUnsupported) {
			return directory, err
		}
	}
	if fallback == "" {
		return "", fmt.Errorf("storage %s can't keep partial files: name a directory for them", s.bytes)
	}
	return fallback, disk.MkdirAll(fallback, 0o755)
}

// Receive stores a local file as the item's Nth, without copying it if the byte store can.
// The caller has compared the file with the item's NarHash and reserved room with
// [Storage.Reserve]; the file does not change any more. On success the caller removes its name,
// and nothing else. A file in [Storage.Spool] may have lost its name by then, even after an
// error.
//
// The error is [ErrNotWanted] if the item's row is of another nar now, and
// [space.ErrLimit] or [space.ErrFreeSpace] if there is no room.
func (s *Storage) Receive(ctx context.Context, item *Item, n int, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("store %s: %w", item.FileName(n), err)
	}
	name, size := item.FileName(n), info.Size()
	if want := item.StoredSize(n); want >= 0 && size != want {
		return fmt.Errorf("store %s: %w: %d bytes, want %d", name, bytestore.ErrWrongSize, size, want)
	}
	if err := s.MayAdd(ctx, false); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	staged, err := s.stageOwn(ctx, name, file, size)
	if err != nil {
		return err
	}
	defer staged.Abort()
	var early *bytestore.Info
	if s.IsMuch(size) {
		if early, err = s.CommitNew(ctx, name, staged); err != nil {
			return err
		}
	}
	err = s.index.Update(ctx, func(tx *index.Tx) error {
		now, n, err := wanted(tx, item, name, size)
		if err != nil {
			return err
		}
		if now.HasStored(n) {
			return nil // another was first
		}
		if err := s.CheckIn(tx, size); err != nil {
			return err
		}
		bounded, cancel := s.WithLockDeadline(ctx, size)
		defer cancel()
		// Another instance may have become the owner meanwhile.
		if err := s.MayDelete(bounded); err != nil {
			return fmt.Errorf("store %s: %w", name, err)
		}
		if early != nil {
			err = s.IsUnchanged(bounded, name, *early)
		} else {
			err = staged.Commit(bounded)
		}
		if err := errors.Join(err, s.bytes.Sync(ctx)); err != nil {
			return err
		}
		return tx.SetStored(now.Hash, now.Stored|now.FilesNamed(name), now.SizesWith(n, size), s.Now())
	})
	// After other errors, the file stays: the next fetch finds it.
	if early != nil && (errors.Is(err, ErrNotWanted) || errors.Is(err, space.ErrLimit) || errors.Is(err, space.ErrFreeSpace) || errors.Is(err, index.ErrFull)) {
		s.Discard(ctx, []string{name})
	}
	return err
}

// stageOwn stages a file of the caller, copying it if need be.
func (s *Storage) stageOwn(ctx context.Context, name string, file *os.File, size int64) (bytestore.Staged, error) {
	if staged, err := s.bytes.StageFile(ctx, name, file, size); !errors.Is(err, bytestore.ErrCantShare) {
		return staged, err
	}
	return s.bytes.Stage(ctx, name, io.NewSectionReader(file, 0, size), size)
}

// wanted returns the item within a transaction, and which of its files has the name. It
// writes the row of a new item before. The error is [ErrNotWanted] unless that is still a
// file of the same nar.
func wanted(tx *index.Tx, item *Item, name string, size int64) (*Item, int, error) {
	if item.Write != nil {
		if err := item.Write(tx); err != nil {
			return nil, 0, err
		}
	}
	row, err := tx.Item(item.Hash)
	if errors.Is(err, ErrNotFound) {
		return nil, 0, ErrNotWanted
	} else if err != nil {
		return nil, 0, err
	}
	now, err := NewItem(row)
	if err != nil {
		return nil, 0, err
	}
	n := now.FileNamed(name)
	if !now.WithdrawnAt.IsZero() || now.Narinfo.NarHash != item.Narinfo.NarHash || n < 0 || now.IsUnwanted(n) {
		return nil, 0, ErrNotWanted
	}
	if want := now.Narinfo.Files[n].Size; want >= 0 && want != size {
		return nil, 0, ErrNotWanted
	}
	return now, n, nil
}

// SizesWith returns the item's sizes with that of the Nth file, unless the narinfo has it.
func (i *Item) SizesWith(n int, size int64) []int64 {
	sizes := slices.Clone(i.Sizes)
	if i.Narinfo.Files[n].Size >= 0 {
		return sizes
	}
	for len(sizes) < len(i.Narinfo.Files) {
		sizes = append(sizes, -1)
	}
	sizes[n] = size
	return sizes
}

// HasUnrecorded reports whether a file of the right size is stored under the name of the
// item's Nth, although the row doesn't claim it. Only [Storage.Adopt] finds out whether it
// is the nar.
func (s *Storage) HasUnrecorded(ctx context.Context, item *Item, n int) (bool, error) {
	name := item.FileName(n)
	if s.bytes == nil || name == "" || item.HasStored(n) || item.IsUnwanted(n) {
		return false, nil
	}
	info, err := s.bytes.Stat(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	} else if err != nil {
		return false, err
	}
	want := item.StoredSize(n)
	return want < 0 || want == info.Size, nil
}

// Adopt records a file that is stored but not claimed by the row, after comparing it with
// the item's NarHash. The error is [narcheck.ErrWrongNar] if it is another nar, [ErrNotWanted] as
// for [Storage.Receive], and [ErrNotOwner] if this instance doesn't own the byte store.
func (s *Storage) Adopt(ctx context.Context, item *Item, n int, decode narcheck.Decoder) error {
	name := item.FileName(n)
	// Don't read a file, which may be large, that belongs to another instance.
	if err := s.MayAdd(ctx, false); err != nil {
		return fmt.Errorf("take %s into the index: %w", name, err)
	}
	// Flush before reading, so that the verified bytes are those on the disk.
	if err := s.bytes.Flush(ctx, name); err != nil {
		return err
	}
	reader, info, err := s.bytes.Open(ctx, name, 0, -1)
	if err != nil {
		return err
	}
	defer reader.Close()
	if err := narcheck.Check(ctx, item.Narinfo, n, io.LimitReader(reader, info.Size), decode); err != nil {
		return err
	}
	return s.Reclaim(ctx, func(ctx context.Context, tx *index.Tx) error {
		now, n, err := wanted(tx, item, name, info.Size)
		if err != nil || now.HasStored(n) {
			return err
		}
		there, err := s.bytes.Stat(ctx, name)
		if err == nil && !there.IsSame(info) {
			err = ErrNotWanted
		}
		if err != nil {
			return err
		}
		if err := s.bytes.Sync(ctx); err != nil {
			return err
		}
		return tx.SetStored(now.Hash, now.Stored|now.FilesNamed(name), now.SizesWith(n, info.Size), s.Now())
	})
}

// Reserve is for bytes that arrive piece by piece, before [Storage.Receive] stores them.
// It checks that they fit below the hard limit and leave the minimum of free space, and
// counts them until the reservation is released. The error is [space.ErrLimit] or
// [space.ErrFreeSpace] if they don't fit, and [ErrNotOwner] if this instance doesn't own
// the byte store.
func (s *Storage) Reserve(ctx context.Context, size int64) (*space.Reservation, error) {
	if err := s.MayAdd(ctx, false); err != nil {
		return nil, err
	}
	r, err := s.ReserveBelowLimit(ctx, size)
	if err != nil {
		return nil, err
	}
	if err := r.Write(ctx); err != nil {
		r.Release()
		return nil, err
	}
	return r, nil
}
