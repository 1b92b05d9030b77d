// Package probe finds out whether a storage can be used now: whether its narinfos and nars can
// be read, and whether nars can be written.
package probe

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

const (
	// sampleSize is the number of items that are tried at a time.
	sampleSize = 8
	// mostSamples is the number of samples that are tried before all nars count as
	// missing: a storage that lacks most nars can serve the others.
	mostSamples = 4
)

// Index returns an error if narinfos can't be read.
func Index(ctx context.Context, s *storage.Storage) error {
	_, err := s.Index().Sample(ctx, sampleSize, false)
	return err
}

// Reading reads from a random sample of nars. It returns an error if none can be read:
// [storage.ErrAllMissing] if they are missing, as in a store that isn't mounted. If some are
// missing, it returns a warning, otherwise "".
func Reading(ctx context.Context, s *storage.Storage) (warning string, err error) {
	if !s.HasBytes() {
		return "", nil
	}
	var failure error
	var read, wrong, removed int
	for sample := 0; sample < mostSamples && read == 0; sample++ {
		rows, err := s.Index().Sample(ctx, sampleSize, !s.IsReadOnly())
		if err != nil {
			return "", err
		}
		if len(rows) == 0 {
			break
		}
		for _, row := range rows {
			item, err := s.ItemOf(row)
			if err != nil {
				continue // damage of the index
			}
			switch err = readItem(ctx, s, item); {
			case err == nil:
				read++
			case ctx.Err() != nil && read > 0:
				return "", nil // slow, but readable
			case ctx.Err() != nil:
				return "", ctx.Err()
			case errors.Is(err, storage.ErrNotStored):
				removed++
			case errors.Is(err, storage.ErrMismatch):
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
		return "", fmt.Errorf("storage %s: %w, or none of those that were looked for: is it mounted? The last: %w", s.ByteStore(), storage.ErrAllMissing, failure)
	case failure != nil:
		return "", fmt.Errorf("no nar can be read from storage %s, or none of those that were tried: the last: %w", s.ByteStore(), failure)
	}
	if err := hasNote(ctx, s); err != nil || removed == 0 || !errors.Is(s.MayDelete(ctx), storage.ErrNotOwner) {
		return "", err
	}
	// The owner may have removed them, or not have stored them yet.
	return "none of the sampled nars are there: is the whole storage mounted?", nil
}

// readItem reads from one of the item's files. The error is [storage.ErrNotStored] if the item
// need not have any.
func readItem(ctx context.Context, s *storage.Storage, item *storage.Item) error {
	try := func(ctx context.Context, item *storage.Item, n int) error { return readByte(ctx, s, item, n) }
	failure := storage.ErrNotStored
	for n := range item.Narinfo.Files {
		if s.IsRemote() || s.NarStore().Invalidate(item.FileName(n)) {
			// This asks the store itself. Reading could use or fill a cache in front of it.
			try = s.LookFor
		}
		switch err := try(ctx, item, n); {
		case err == nil:
			return nil
		case !errors.Is(err, storage.ErrNotStored):
			failure = err
		}
	}
	if now, err := s.Item(ctx, item.Hash); errors.Is(err, storage.ErrNotFound) || err == nil && now.Stored != item.Stored {
		return storage.ErrNotStored // removed meanwhile
	}
	return failure
}

// readByte reads the first byte of the item's Nth file.
func readByte(ctx context.Context, s *storage.Storage, item *storage.Item, n int) error {
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
func hasNote(ctx context.Context, s *storage.Storage) error {
	if totals, err := s.Index().Totals(ctx); err != nil || !s.IsReadOnly() && totals.StoredNars == 0 {
		return err
	}
	_, err := bytestore.ReadNote(ctx, s.ByteStore(), bytestore.OwnerName)
	if errors.Is(err, fs.ErrNotExist) {
		_, err = bytestore.ReadNote(ctx, s.ByteStore(), bytestore.IdentityName)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("storage %s: %w, and it has neither %s nor %s, which its owner writes: is it mounted?", s.ByteStore(), storage.ErrAllMissing, bytestore.OwnerName, bytestore.IdentityName)
	}
	return err
}

// Writing returns an error if the byte store can't be written to, as far as that shows
// without writing; nil if this instance doesn't write to it anyway.
func Writing(ctx context.Context, s *storage.Storage) error {
	if !s.HasBytes() || s.MayDelete(ctx) != nil {
		return nil
	}
	return s.ByteStore().Probe(ctx)
}
