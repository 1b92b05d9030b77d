package nars

import (
	"context"
	"errors"
	"fmt"

	"nar-herder/mirror/nars/room"
	"nar-herder/storage"
)

// ErrFull is in the error of [Fetcher.Fetch] if nothing more can be stored for now.
var ErrFull = errors.New("no room for more nars")

// Fetch downloads, verifies and stores an item's Nth file, and returns when it is stored. The
// item need not be in the index, see [storage.Item.Write]. The error is [storage.ErrNotStored]
// if the source certainly doesn't have the file, [narcheck.ErrWrongNar] if that is not the nar,
// [spool.ErrInUse] if another process is fetching it, and [storage.ErrNotWanted] as for [storage.Storage.Receive]. After an interruption, the next
// call resumes.
func (f *Fetcher) Fetch(ctx context.Context, item *storage.Item, n int) error {
	err := f.fetchFile(ctx, item, n)
	if errors.Is(err, room.ErrNone) || room.IsFull(err) {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	return err
}
