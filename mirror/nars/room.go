package nars

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/storage/index"
	"nar-herder/storage/space"
)

// mostBehind bounds how much more than a nar's own size is removed for it while a client waits.
// A larger shortage, as after the limit was lowered or when another program fills the file
// system, is left to the rounds of the remover.
const mostBehind = 256 << 20

// vainPause is how long nothing is removed on demand after that has not made room, as when the
// file system frees nothing because of snapshots or other hard links.
const vainPause = 10 * time.Minute

// block is the largest difference between the length of a file and its size on the disk.
const block = 4 << 10

// margin is the share, one of so many, of the limit or of the minimum of free space that
// background downloads leave free. Thus neither rounding nor a small import makes the
// remover remove nars that were just fetched, and what it removes makes no room for a
// download: it stops as soon as the storage is below its limit.
const margin = 50

// reserveMaking is reserve, and removes other nars if a client waits and there is no room.
func (f *Fetcher) reserveMaking(ctx context.Context, size int64, onDemand bool) (*room, error) {
	r, err := f.reserve(ctx, size, onDemand)
	var shortage *space.Shortage
	if !onDemand || f.options.MakeRoom == nil || !errors.As(err, &shortage) {
		return r, err
	}
	// One at a time: others use what it removes beyond its need.
	select {
	case f.making <- struct{}{}:
		defer func() { <-f.making }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	wasFreeSpace := false
	for tries := 0; ; tries++ { // once for a limit, and once for the free space
		if r, err = f.reserve(ctx, size, onDemand); !errors.As(err, &shortage) {
			return r, err
		}
		isFreeSpace := errors.Is(err, space.ErrFreeSpace)
		switch {
		case tries > 0 && isFreeSpace && wasFreeSpace:
			f.vainUntil = f.now().Add(vainPause)
			f.log.Warn("removing nars has not freed space on the file system of the storage: for a while, clients get nars that are not stored", "until", f.vainUntil.Format(time.RFC3339), "error", err)
			return nil, err
		case tries > 0 && isFreeSpace == wasFreeSpace, tries > 1,
			shortage.Bytes > size+mostBehind,
			isFreeSpace && f.now().Before(f.vainUntil):
			return nil, err
		}
		if makeErr := f.options.MakeRoom(ctx, shortage.Bytes); makeErr != nil {
			return nil, fmt.Errorf("%w: %w", err, makeErr)
		}
		wasFreeSpace = isFreeSpace
	}
}

// reserve reserves room for size bytes, besides all downloads, until the room is released.
// The error is errNoRoom if they would exceed the limit, or leave less than the minimum of
// free space and, unless a client waits, its margin. It is [space.ErrLimit] if they would
// exceed the hard limit, and [space.ErrFreeSpace] if less than the minimum would be left.
func (f *Fetcher) reserve(ctx context.Context, size int64, onDemand bool) (_ *room, err error) {
	r := &room{uncount: sync.OnceFunc(func() { f.coming.Add(-size - block) })}
	// Count before reading the usage: a download that ends meanwhile is counted once or
	// twice, but never not at all.
	coming := f.coming.Add(size + block)
	defer func() {
		if err != nil {
			r.uncount()
		}
	}()
	if limit := f.options.Limit; limit >= 0 {
		if !onDemand {
			limit -= limit / margin
		}
		usage, err := f.options.Usage(ctx)
		if err != nil {
			return nil, localError{fmt.Errorf("find out what the storage takes: %w", err)}
		}
		if usage+coming > limit {
			return nil, &space.Shortage{Bytes: usage + coming - limit, Err: fmt.Errorf("%w: of %d bytes, %d are taken and %d are coming with this nar", errNoRoom, limit, usage, coming)}
		}
	}
	if !onDemand {
		spare, minimum, err := f.storage.Spare(ctx)
		if err != nil {
			return nil, localError{fmt.Errorf("find out how much is free on the file system of the storage: %w", err)}
		}
		if minimum >= 0 && spare-minimum/margin < size+block {
			return nil, fmt.Errorf("%w: %d bytes can be written before less than %d are free, and this nar has %d", errNoRoom, max(spare, 0), minimum, size)
		}
	}
	if r.Reservation, err = f.storage.Reserve(ctx, size); err != nil {
		return nil, localError{err}
	}
	return r, nil
}

// grow enlarges the room of a download once the source has sent the file's length.
func (f *Fetcher) grow(ctx context.Context, d *download, size int64) error {
	room, err := f.reserveMaking(ctx, size, d.onDemand)
	if err != nil {
		if errors.Is(err, errNoRoom) {
			err = localError{err}
		}
		return err
	}
	d.room.Release()
	d.room = room
	return nil
}

// reserveRetained reserves room for a file that stays in the spool, see [spool.Options].
func (f *Fetcher) reserveRetained(ctx context.Context, size int64) (release func(), ok bool) {
	room, err := f.reserve(ctx, size, true)
	if err != nil {
		return nil, !errors.Is(err, errNoRoom) && !errors.Is(err, space.ErrLimit) && !errors.Is(err, space.ErrFreeSpace)
	}
	room.SetWritten(size)
	return room.Release, true
}

// room is a download's share of the storage.
type room struct {
	*space.Reservation
	uncount func()
}

// Release gives the room back. Further calls do nothing.
func (r *room) Release() {
	r.Reservation.Release()
	r.uncount()
}

// errNoRoom reports that the limit or the minimum of free space that the remover keeps leaves
// no room.
var errNoRoom = errors.New("there is no room in the storage")

// isFull reports whether an error means that nothing more can be written for now.
func isFull(err error) bool {
	return disk.IsFull(err) || errors.Is(err, space.ErrLimit) || errors.Is(err, space.ErrFreeSpace) || errors.Is(err, index.ErrFull)
}
