package storage

import (
	"context"
	"time"

	"nar-herder/storage/index"
)

const (
	// lockedWait is how long a remote byte store may take while the index is locked: less
	// than other processes wait for the lock.
	lockedWait = 20 * time.Second
	// lockedRate adds time for committed nars, in bytes per second: some servers copy the
	// parts of a nar then.
	lockedRate = 64 << 20
)

// WithLockDeadline bounds the time of calls to a remote byte store while the index is locked.
// size is the length of the nars that are committed.
func (s *Storage) WithLockDeadline(ctx context.Context, size int64) (context.Context, context.CancelFunc) {
	if !s.IsRemote() {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, lockedWait+time.Duration(size/lockedRate)*time.Second)
}

// Update runs f in a write transaction of the index in which nars of size bytes are
// committed to the byte store. Calls to the byte store use the context that f gets: its
// deadline is shorter than other processes wait for the lock.
func (s *Storage) Update(ctx context.Context, size int64, f func(context.Context, *index.Tx) error) error {
	return s.index.Update(ctx, s.withinDeadline(ctx, size, f))
}

// Reclaim is Update for a transaction that adds nothing. It may use the reserve of the
// database; f may be called twice.
func (s *Storage) Reclaim(ctx context.Context, f func(context.Context, *index.Tx) error) error {
	return s.index.Reclaim(ctx, s.withinDeadline(ctx, 0, f))
}

func (s *Storage) withinDeadline(ctx context.Context, size int64, f func(context.Context, *index.Tx) error) func(*index.Tx) error {
	return func(tx *index.Tx) error {
		ctx, cancel := s.WithLockDeadline(ctx, size)
		defer cancel()
		return f(ctx, tx)
	}
}
