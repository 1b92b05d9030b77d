package nars

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"nar-herder/internal/disk"
	"nar-herder/storage/index"
	"nar-herder/storage/space"
)

// block is what a file takes of the disk beyond its length, at the most.
const block = 4 << 10

// margin is the part of the limit, or of the minimum of free space, that is left free
// by what is fetched without being asked for, one of so many: so that neither a
// rounding nor an import of a few nars has the remover act on nars that were just
// fetched. What it removes makes no room for such a fetch either, as it removes no more
// than brings the storage below its limit, and the nar that it removed last does not
// fit again.
const margin = 50

// reserve makes sure that there is room for so many bytes of a file, beside all that
// is under way, and counts them until the room is released. The error is errNoRoom when
// there is none below the limit, or above the minimum of free space with its margin,
// and [space.ErrLimit] or [space.ErrFreeSpace] when there is none below the hard
// limit or above the minimum.
func (f *Fetcher) reserve(ctx context.Context, size int64, asked bool) (_ *room, err error) {
	r := &room{uncount: sync.OnceFunc(func() { f.coming.Add(-size - block) })}
	// Before the usage is looked at: what comes to its end meanwhile is counted
	// here or there, or twice.
	coming := f.coming.Add(size + block)
	defer func() {
		if err != nil {
			r.uncount()
		}
	}()
	if limit := f.options.Limit; limit >= 0 {
		if !asked {
			limit -= limit / margin
		}
		usage, err := f.options.Usage(ctx)
		if err != nil {
			return nil, localError{fmt.Errorf("find out what the storage takes: %w", err)}
		}
		if usage+coming > limit {
			return nil, fmt.Errorf("%w: of %d bytes, %d are taken and %d are coming with this nar", errNoRoom, limit, usage, coming)
		}
	}
	if !asked {
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

// grow makes the room of a flight larger, once the source says how long the file is.
func (f *Fetcher) grow(ctx context.Context, fl *flight, size int64) error {
	room, err := f.reserve(ctx, size, fl.asked)
	if err != nil {
		if errors.Is(err, errNoRoom) {
			err = localError{err}
		}
		return err
	}
	fl.room.Release()
	fl.room = room
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

// room is what a flight takes of the storage.
type room struct {
	*space.Reservation
	uncount func()
}

// Release gives it back. Another call does nothing.
func (r *room) Release() {
	r.Reservation.Release()
	r.uncount()
}

// errNoRoom is about the limit above which nars are removed, and the free space below
// which they are.
var errNoRoom = errors.New("there is no room in the storage")

// isFull says whether an error means that nothing more can be written for now.
func isFull(err error) bool {
	return disk.IsFull(err) || errors.Is(err, space.ErrLimit) || errors.Is(err, space.ErrFreeSpace) || errors.Is(err, index.ErrFull)
}
