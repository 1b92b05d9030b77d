package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"nar-herder/storage/bytestore"
)

const (
	// sampleSize is the number of items that are tried at a time.
	sampleSize = 8
	// mostSamples is the number of samples that are tried before all nars count as
	// missing: a storage that lacks most nars can serve the others.
	mostSamples = 4
)

// TryIndex returns an error if narinfos can't be read.
func (s *Storage) TryIndex(ctx context.Context) error {
	_, err := s.index.Sample(ctx, sampleSize, false)
	return err
}

// TryReading reads from a random sample of nars. It returns an error if none can be read:
// [ErrAllMissing] if they are missing, as in a store that isn't mounted. If some are
// missing, it returns a warning, otherwise "".
func (s *Storage) TryReading(ctx context.Context) (warning string, err error) {
	if s.bytes == nil {
		return "", nil
	}
	var failure error
	var read, wrong, removed int
	for sample := 0; sample < mostSamples && read == 0; sample++ {
		rows, err := s.index.Sample(ctx, sampleSize, !s.readOnly)
		if err != nil {
			return "", err
		}
		if len(rows) == 0 {
			break
		}
		for _, row := range rows {
			item, err := NewItem(row)
			if err != nil {
				continue // damage of the index
			}
			switch err = s.tryItem(ctx, s.asReadOnly(item)); {
			case err == nil:
				read++
			case ctx.Err() != nil && read > 0:
				return "", nil // slow, but readable
			case ctx.Err() != nil:
				return "", ctx.Err()
			case errors.Is(err, ErrNotStored):
				removed++
			case errors.Is(err, ErrMismatch):
				wrong++
				failure = err
			default:
				failure = err
				sample = mostSamples // more samples don't help
			}
		}
	}
	switch {
	case read > 0 && wrong > 0:
		return fmt.Sprintf("%d of %d sampled nars are missing or have another size: run 'nar-herder check'", wrong, wrong+read), nil
	case read > 0:
		return "", nil
	case errors.Is(failure, fs.ErrNotExist):
		return "", fmt.Errorf("storage %s: %w, or none of those that were looked for: is it mounted? The last: %w", s.bytes, ErrAllMissing, failure)
	case failure != nil:
		return "", fmt.Errorf("no nar can be read from storage %s, or none of those that were tried: the last: %w", s.bytes, failure)
	}
	if err := s.hasNote(ctx); err != nil || removed == 0 || !errors.Is(s.MayDelete(ctx), ErrNotOwner) {
		return "", err
	}
	// The owner may have removed them, or not have stored them yet.
	return "none of the sampled nars are there: is the whole storage mounted?", nil
}

// tryItem reads from one of the item's files. The error is [ErrNotStored] if the item need
// not have any.
func (s *Storage) tryItem(ctx context.Context, item *Item) error {
	try := s.readByte
	failure := ErrNotStored
	for n := range item.Narinfo.Files {
		if s.IsRemote() || s.bytes.Invalidate(item.names[n]) {
			// This asks the store itself. Reading could use or fill a cache in front of it.
			try = s.LookFor
		}
		switch err := try(ctx, item, n); {
		case err == nil:
			return nil
		case !errors.Is(err, ErrNotStored):
			failure = err
		}
	}
	if now, err := s.Item(ctx, item.Hash); errors.Is(err, ErrNotFound) || err == nil && now.Stored != item.Stored {
		return ErrNotStored // removed meanwhile
	}
	return failure
}

// readByte reads the first byte of the item's Nth file.
func (s *Storage) readByte(ctx context.Context, item *Item, n int) error {
	reader, _, err := s.OpenFile(ctx, item, n, 0, 0)
	if err != nil {
		return err
	}
	defer reader.Close()
	if _, err = reader.Read(make([]byte, 1)); err == io.EOF {
		return nil
	}
	return err
}

// hasNote checks that the byte store is mounted by its notes, for a store that may have no
// nars.
func (s *Storage) hasNote(ctx context.Context) error {
	if totals, err := s.index.Totals(ctx); err != nil || !s.readOnly && totals.StoredNars == 0 {
		return err
	}
	_, err := s.note(ctx, bytestore.OwnerName)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = s.note(ctx, bytestore.IdentityName)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("storage %s: %w, and it has neither %s nor %s, which its owner writes: is it mounted?", s.bytes, ErrAllMissing, bytestore.OwnerName, bytestore.IdentityName)
	}
	return err
}

// TryWriting returns an error if the byte store can't be written to, as far as that shows
// without writing; nil if this instance doesn't write to it anyway.
func (s *Storage) TryWriting(ctx context.Context) error {
	if s.bytes == nil || s.MayDelete(ctx) != nil {
		return nil
	}
	return s.bytes.Probe(ctx)
}
