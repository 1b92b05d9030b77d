// Package room decides whether a download fits into the storage beside all others that run, and
// makes room for those that a client waits for.
package room

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/space"
)

// Options of [New].
type Options struct {
	Storage *storage.Storage
	// Limit is the size in bytes on the disk below which downloads keep the storage;
	// negative for none.
	Limit int64
	// Usage returns the current size of the storage.
	Usage func(ctx context.Context) (int64, error)
	// MakeRoom removes nars from the storage until so many bytes are free; nil if there are
	// none that may be removed for a client. Its error says why there is no room.
	MakeRoom func(ctx context.Context, bytes int64) error
	Log      *slog.Logger
	Now      func() time.Time
}

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

// maxUnfit is how many files in a row may be too large for the room that is left before others
// are taken to be, too.
const maxUnfit = 20

// Room is the room in a storage. Its methods are safe for concurrent use.
type Room struct {
	Options
	// coming is how many bytes all downloads will take.
	coming atomic.Int64
	// making is a semaphore for MakeRoom, and guards vainUntil, until which it isn't called.
	making    chan struct{}
	vainUntil time.Time

	mu sync.Mutex
	// unfits is how many files in a row did not fit. unfitUsage was the size of the storage
	// then, negative if all fitted, and unfitSpare what could be written above the minimum
	// of free space.
	unfits                 int
	unfitUsage, unfitSpare int64
}

// New makes the Room of a storage.
func New(options Options) *Room {
	return &Room{Options: options, making: make(chan struct{}, 1), unfitUsage: -1}
}

// Coming returns how many bytes all downloads will take.
func (r *Room) Coming() int64 { return r.coming.Load() }

// Reserve reserves room for size bytes, besides all downloads, until the share is released. If a
// client waits and there is no room, it removes other nars.
//
// The error is [ErrNone] if the bytes would exceed the limit, or leave less than the minimum of
// free space and, unless a client waits, its margin. It is [space.ErrLimit] if they would exceed
// the hard limit, and [space.ErrFreeSpace] if less than the minimum would be left.
func (r *Room) Reserve(ctx context.Context, size int64, onDemand bool) (*Share, error) {
	share, err := r.reserve(ctx, size, onDemand)
	var shortage *space.Shortage
	if !onDemand || r.MakeRoom == nil || !errors.As(err, &shortage) {
		return share, err
	}
	// One at a time: others use what it removes beyond its need.
	select {
	case r.making <- struct{}{}:
		defer func() { <-r.making }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	wasFreeSpace := false
	for tries := 0; ; tries++ { // once for a limit, and once for the free space
		if share, err = r.reserve(ctx, size, onDemand); !errors.As(err, &shortage) {
			return share, err
		}
		isFreeSpace := errors.Is(err, space.ErrFreeSpace)
		switch {
		case tries > 0 && isFreeSpace && wasFreeSpace:
			r.vainUntil = r.Now().Add(vainPause)
			r.Log.Warn("removing nars has not freed space on the file system of the storage: for a while, clients get nars that are not stored", "until", r.vainUntil.Format(time.RFC3339), "error", err)
			return nil, err
		case tries > 0 && isFreeSpace == wasFreeSpace, tries > 1,
			shortage.Bytes > size+mostBehind,
			isFreeSpace && r.Now().Before(r.vainUntil):
			return nil, err
		}
		if makeErr := r.MakeRoom(ctx, shortage.Bytes); makeErr != nil {
			return nil, fmt.Errorf("%w: %w", err, makeErr)
		}
		wasFreeSpace = isFreeSpace
	}
}

// reserve is Reserve without making room.
func (r *Room) reserve(ctx context.Context, size int64, onDemand bool) (_ *Share, err error) {
	share := &Share{uncount: sync.OnceFunc(func() { r.coming.Add(-size - block) })}
	// Count before reading the usage: a download that ends meanwhile is counted once or
	// twice, but never not at all.
	coming := r.coming.Add(size + block)
	defer func() {
		if err != nil {
			share.uncount()
		}
	}()
	if limit := r.Limit; limit >= 0 {
		if !onDemand {
			limit -= limit / margin
		}
		usage, err := r.Usage(ctx)
		if err != nil {
			return nil, fmt.Errorf("find out what the storage takes: %w", err)
		}
		if usage+coming > limit {
			return nil, &space.Shortage{Bytes: usage + coming - limit, Err: fmt.Errorf("%w: of %d bytes, %d are taken and %d are coming with this nar", ErrNone, limit, usage, coming)}
		}
	}
	if !onDemand {
		spare, minimum, err := r.Storage.Spare(ctx)
		if err != nil {
			return nil, fmt.Errorf("find out how much is free on the file system of the storage: %w", err)
		}
		if minimum >= 0 && spare-minimum/margin < size+block {
			return nil, fmt.Errorf("%w: %d bytes can be written before less than %d are free, and this nar has %d", ErrNone, max(spare, 0), minimum, size)
		}
	}
	if share.Reservation, err = r.Storage.Reserve(ctx, size); err != nil {
		return nil, err
	}
	return share, nil
}

// Retain reserves room for a file of which the file system has all bytes, until release is called.
// ok is false if there is none. release is nil if that is not known.
func (r *Room) Retain(ctx context.Context, size int64) (release func(), ok bool) {
	share, err := r.reserve(ctx, size, true)
	if err != nil {
		return nil, !errors.Is(err, ErrNone) && !errors.Is(err, space.ErrLimit) && !errors.Is(err, space.ErrFreeSpace)
	}
	share.SetWritten(size)
	return share.Release, true
}

// Share is what a download has reserved.
type Share struct {
	*space.Reservation
	uncount func()
}

// Release gives the room back. Further calls do nothing.
func (s *Share) Release() {
	s.Reservation.Release()
	s.uncount()
}

// ErrNone reports that the limit or the minimum of free space that the remover keeps leaves
// no room.
var ErrNone = errors.New("there is no room in the storage")

// IsFull reports whether an error means that nothing more can be written for now.
func IsFull(err error) bool {
	return disk.IsFull(err) || errors.Is(err, space.ErrLimit) || errors.Is(err, space.ErrFreeSpace) || errors.Is(err, index.ErrFull)
}
