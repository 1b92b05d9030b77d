package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

// What follows are the steps of a repair. Each is a transaction, or safe to be
// cut off and done again, and each looks first whether row and file are still as
// they were found.

// locked is a transaction that adds nothing, and in which the byte store is asked or
// changed. It may use the reserve of the database: then f is called again. Its error
// names no database where it is not about one.
func (s *Storage) locked(ctx context.Context, f func(context.Context, *index.Tx) error) error {
	return s.lockedBy(ctx, s.index.Reclaim, 0, f)
}

// lockedBy is locked with another kind of transaction, in which so many bytes are
// shown.
func (s *Storage) lockedBy(ctx context.Context, transact func(context.Context, func(*index.Tx) error) error, size int64, f func(context.Context, *index.Tx) error) error {
	err := transact(ctx, func(tx *index.Tx) error {
		hurried, cancel := s.hurried(ctx, size)
		defer cancel()
		return f(hurried, tx)
	})
	if errors.Is(err, errMeanwhile) {
		return errMeanwhile
	}
	return err
}

// restore shows bytes that are the item's nar, in the place of those that were
// found, and has the row claim them. Cut off between the two, the row claims what
// it claimed before, or too little.
func (s *Storage) restore(ctx context.Context, finding Finding, staged bytestore.Staged, size int64) error {
	return s.lockedBy(ctx, s.index.Update, size, func(ctx context.Context, tx *index.Tx) error {
		item, err := s.still(ctx, tx, finding)
		if err == nil {
			err = s.MayDelete(ctx) // it may have been taken over since the fetch began
		}
		if err != nil {
			return err
		}
		if err := errors.Join(staged.Commit(ctx), s.bytes.Sync(ctx)); err != nil {
			return err
		}
		// Also where the row claims them already: others have to look again.
		return tx.SetStored(item.Hash, item.Stored|item.filesNamed(finding.Name), item.Sizes)
	})
}

// record has the row claim a file that is there and is the item's Nth.
func (s *Storage) record(ctx context.Context, finding Finding, n int) error {
	if err := s.bytes.Flush(ctx, finding.Name); errors.Is(err, fs.ErrNotExist) {
		return errMeanwhile
	} else if err != nil {
		return err
	}
	return s.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		item, err := s.still(ctx, tx, finding)
		if err != nil {
			return err
		}
		if err := s.bytes.Sync(ctx); err != nil {
			return err
		}
		return tx.SetStored(item.Hash, item.Stored|1<<n, item.sizesWith(n, finding.info.Size))
	})
}

// unclaim has the row no longer claim the file of a finding.
func (s *Storage) unclaim(ctx context.Context, finding Finding) error {
	return s.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		item, err := s.still(ctx, tx, finding)
		if err != nil {
			return err
		}
		return tx.SetStored(item.Hash, item.Stored&^item.filesNamed(finding.Name), item.Sizes)
	})
}

// filesNamed are the bits of the item's files that lie under a name.
func (i *Item) filesNamed(name string) (files uint64) {
	for n := range min(len(i.names), 64) {
		if i.names[n] == name {
			files |= 1 << n
		}
	}
	return files
}

// setAside moves a file that no row claims into quarantine: by a copy, as that
// is what every byte store can do.
func (s *Storage) setAside(ctx context.Context, finding Finding) error {
	if err := s.copyToQuarantine(ctx, finding); err != nil {
		return err
	}
	return s.locked(ctx, func(ctx context.Context, tx *index.Tx) error {
		claimed, err := isClaimed(tx, finding.Item.Hash, finding.Name)
		if err == nil {
			err = s.MayDelete(ctx)
		}
		if err != nil {
			return err
		}
		info, err := s.bytes.Stat(ctx, finding.Name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case claimed || !sameFile(info, finding.info):
			return errMeanwhile // others have come
		}
		return errors.Join(s.bytes.Remove(ctx, finding.Name), s.bytes.Sync(ctx))
	})
}

// copyToQuarantine keeps what is wrong for whoever wants to know why. An earlier
// copy of the same name goes.
func (s *Storage) copyToQuarantine(ctx context.Context, finding Finding) error {
	reader, info, err := s.bytes.Open(ctx, finding.Name, 0, -1)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !sameFile(info, finding.info) {
		err = errMeanwhile
	}
	if reader != nil {
		defer reader.Close()
	}
	if err != nil {
		return err
	}
	room, err := s.reserveFree(ctx, info.Size)
	if err != nil {
		return fmt.Errorf("set %s aside: %w", finding.Name, err)
	}
	defer room.Release()
	staged, err := s.bytes.Store.Stage(ctx, bytestore.QuarantineFolder+finding.Name, io.LimitReader(reader, info.Size), info.Size)
	if err != nil {
		return fmt.Errorf("set %s aside: %w", finding.Name, err)
	}
	defer staged.Abort()
	return errors.Join(staged.Commit(ctx), s.bytes.Sync(ctx))
}

// hasAny says whether any file is there that the index has as stored.
func (s *Storage) hasAny(ctx context.Context) (bool, error) {
	// One of the first, which takes no listing where all is well.
	looked := 0
	for item, err := range s.Items(ctx) {
		if errors.Is(err, index.ErrDamaged) {
			continue // others tell as well
		}
		if err != nil {
			return false, err
		}
		for n, name := range item.names {
			if name == "" || !item.HasStored(n) {
				continue
			}
			if _, err := s.bytes.Stat(ctx, name); err == nil {
				return true, nil
			}
			looked++
		}
		if looked >= 100 {
			break
		}
	}
	for info, err := range s.bytes.List(ctx) {
		if err != nil && info.Name != "" {
			continue // others tell as well
		}
		if err != nil {
			return false, err
		}
		if info.Temporary {
			continue
		}
		item, err := s.Item(ctx, hashInName(info.Name))
		if errors.Is(err, ErrNotFound) || errors.Is(err, index.ErrDamaged) {
			continue
		} else if err != nil {
			return false, err
		}
		if n := item.FileNamed(info.Name); n >= 0 && item.HasStored(n) {
			return true, nil
		}
	}
	return false, nil
}
