// Package unfinished removes temporary files and uploads that killed processes have left.
package unfinished

import (
	"context"
	"errors"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
)

// AbandonedAfter is the age from which a temporary file counts as abandoned.
const AbandonedAfter = 24 * time.Hour

const (
	// listEvery is how often unfinished uploads are listed, and removeMost how many of them
	// are removed then, one each removePause.
	listEvery   = time.Hour
	removeMost  = 100
	removePause = 20 * time.Second
)

// Remove removes temporary bytes unless they may still be being written.
func Remove(ctx context.Context, s *storage.Storage, info bytestore.Info) (removed bool, err error) {
	if s.Now().Sub(info.ModTime) < AbandonedAfter {
		return false, nil
	}
	return true, s.ByteStore().Remove(ctx, info.Name)
}

// Run removes uploads of killed processes until the context ends, if the byte store can list
// them. It removes a few a minute, only uploads that are a day old, and only if this instance
// owns the byte store.
func Run(ctx context.Context, s *storage.Storage) {
	if !s.HasBytes() {
		return
	}
	for logged := false; ; {
		failure := removeListed(ctx, s)
		switch {
		case ctx.Err() != nil || errors.Is(failure, errors.ErrUnsupported):
			return
		case failure != nil && !logged:
			s.Log().Warn("can't remove unfinished uploads that are older than a day: retrying each hour; 'nar-herder check' lists them", "storage", s.NarStore().String(), "error", failure)
		}
		logged = failure != nil
		if pace.Sleep(ctx, listEvery) != nil {
			return
		}
	}
}

// removeListed lists and removes them once. It continues after errors and returns the
// first.
func removeListed(ctx context.Context, s *storage.Storage) (failure error) {
	failed := func(err error) {
		if failure == nil {
			failure = err
		}
	}
	if err := s.MayDelete(ctx); errors.Is(err, storage.ErrNotOwner) {
		return nil
	} else if err != nil {
		return err
	}
	// List first: a listing may not continue after a removal.
	var found []bytestore.Info
	for info, err := range s.NarStore().ListUnfinished(ctx, s.Now().Add(-AbandonedAfter)) {
		if err != nil {
			failed(err)
			continue
		}
		if found = append(found, info); len(found) == removeMost {
			break
		}
	}
	for i, info := range found {
		if i > 0 && pace.Sleep(ctx, removePause) != nil {
			return ctx.Err()
		}
		if err := s.MayDelete(ctx); errors.Is(err, storage.ErrNotOwner) {
			return failure
		} else if err != nil {
			return errors.Join(failure, err)
		}
		removed, err := Remove(ctx, s, info)
		if err != nil {
			failed(err)
		} else if removed {
			s.Log().Info("removed an unfinished upload", "storage", s.NarStore().String(), "file", info.Name, "bytes", info.Size, "since", info.ModTime)
		}
	}
	return failure
}
