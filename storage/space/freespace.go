package space

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"nar-herder/storage/index"
)

// ErrFreeSpace says that bytes were refused because less than the minimum would stay free on
// the file system of the storage.
var ErrFreeSpace = errors.New("too little free space on the file system of the storage")

// minimumFreeSetting is the key of the minimum of free space, in bytes.
const minimumFreeSetting = "storage_minimum_free_space"

// SetMinimumFree makes all processes that use the index refuse bytes that would leave less
// than the minimum free on the file system of the storage; negative for no minimum.
func (s *Space) SetMinimumFree(ctx context.Context, minimum int64) error {
	return s.setLimit(ctx, minimumFreeSetting, minimum)
}

// MinimumFree returns the minimum of free space; negative for none.
func (s *Space) MinimumFree(ctx context.Context) (int64, error) {
	text, err := s.index.Setting(ctx, minimumFreeSetting)
	if err != nil {
		return 0, err
	}
	return parseLimit("minimum of free space", text)
}

// FreeSpace returns the free space of the byte store; see [bytestore.Store].
func (s *Space) FreeSpace() (free, size int64, err error) {
	if s.bytes == nil {
		return 0, 0, errors.ErrUnsupported
	}
	return s.bytes.FreeSpace()
}

// Spare returns how many more bytes can be written before less than the minimum is free, and
// the minimum. If that is negative, there is no minimum, and spare is undefined.
func (s *Space) Spare(ctx context.Context) (spare, minimum int64, err error) {
	minimum, err = s.MinimumFree(ctx)
	if err != nil || minimum < 0 {
		return 0, minimum, err
	}
	free, _, err := s.FreeSpace()
	if errors.Is(err, errors.ErrUnsupported) {
		return 0, -1, nil
	} else if err != nil {
		return 0, 0, err
	}
	return free - s.unwritten.Load() - minimum, minimum, nil
}

// staysFree checks that the minimum stays free when so many more bytes have been written.
func (s *Space) staysFree(minimum, unwritten int64) error {
	if minimum < 0 {
		return nil
	}
	free, _, err := s.FreeSpace()
	if errors.Is(err, errors.ErrUnsupported) {
		return nil
	} else if err != nil {
		return err
	}
	if free-unwritten >= minimum {
		return nil
	}
	return &Shortage{minimum + unwritten - free, fmt.Errorf("%w: %s has %d bytes free, %d must still be written, and %d must stay free: make room there, remove items, or lower --storage-minimum-free-space",
		ErrFreeSpace, s.bytes, free, unwritten, minimum)}
}

// staysFreeWith is staysFree within a transaction, for bytes that are on the file system
// already, including those of other processes.
func (s *Space) staysFreeWith(tx *index.Tx) error {
	text, err := tx.Setting(minimumFreeSetting)
	if err != nil || text == "" {
		return err
	}
	minimum, err := parseLimit("minimum of free space", text)
	if err != nil {
		return err
	}
	return s.staysFree(minimum, 0)
}

// Reservation is room in the storage for bytes that are about to be written.
type Reservation struct {
	s         *Space
	size      int64
	mu        sync.Mutex
	unwritten int64 // bytes that the file system doesn't have yet
	released  bool
}

// SetWritten sets how many of the bytes the file system has. Room for the others doesn't count
// as free.
func (r *Reservation) SetWritten(n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.released {
		r.setUnwritten(max(r.size-n, 0))
	}
}

// setUnwritten is called with the mutex held.
func (r *Reservation) setUnwritten(n int64) {
	r.s.unwritten.Add(n - r.unwritten)
	r.unwritten = n
}

// Release ends the reservation. Another call does nothing.
func (r *Reservation) Release() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.released {
		return
	}
	r.setUnwritten(0)
	r.s.inFlight.Add(-r.size)
	r.released = true
}

// ReserveReplacement reserves room for bytes that replace others: for a while, both exist. The
// hard limit counts the others already.
func (s *Space) ReserveReplacement(ctx context.Context, size int64) (*Reservation, error) {
	size = max(size, 0)
	s.inFlight.Add(size)
	r := &Reservation{s: s, size: size}
	if err := r.Write(ctx); err != nil {
		r.Release()
		return nil, err
	}
	return r, nil
}

// Share checks the minimum of free space for a file that takes no more room.
func (r *Reservation) Share(ctx context.Context) error {
	minimum, err := r.s.MinimumFree(ctx)
	if err != nil {
		return err
	}
	return r.s.staysFree(minimum, r.s.unwritten.Load())
}

// Write checks that the minimum stays free when the bytes are written.
func (r *Reservation) Write(ctx context.Context) error {
	r.SetWritten(0)
	err := r.Share(ctx)
	if err != nil {
		r.SetWritten(r.size)
	}
	return err
}
