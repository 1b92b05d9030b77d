package index

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
)

// SQLite can't delete anything on a full file system: also what a transaction deletes
// is appended to the write-ahead log. So some room is kept in a file beside the
// database, and given up for removals when there is no other. From then on nothing else
// is written, until there is room to keep the reserve again.

const (
	// reserveSuffix makes the name of the reserve from that of the database.
	reserveSuffix = ".reserve"
	// mostReserve is enough for the log until it is folded back, at
	// checkpointBytes, with the largest removals.
	mostReserve = 32 << 20
	// reserveShare bounds the reserve on a small file system to one of so many
	// parts.
	reserveShare = 16
)

// Reserve is the state of the room that is kept for removals.
type Reserve int

const (
	// NoReserve: none is kept for this database.
	NoReserve Reserve = iota
	// ReserveKept: it is there.
	ReserveKept
	// ReserveUsed: it was given up for removals, and nothing else is written.
	ReserveUsed
)

// reserveOf finds out about the reserve of a database.
func reserveOf(path string) (Reserve, error) {
	info, err := os.Stat(path + reserveSuffix)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return NoReserve, nil
	case err != nil:
		return NoReserve, fmt.Errorf("look for the reserve of the database: %w", err)
	case info.Size() == 0:
		return ReserveUsed, nil
	}
	return ReserveKept, nil
}

// Reserve returns the state of the reserve.
func (x *Index) Reserve() (Reserve, error) { return reserveOf(x.file) }

// KeepReserve makes the reserve where it is not there and the file system has room
// for it, with as much again beside it. It returns the state of the reserve.
func (x *Index) KeepReserve() (Reserve, error) {
	state, err := x.Reserve()
	if err != nil || state == ReserveKept {
		return state, err
	}
	free, size, err := disk.Room(x.Directory())
	if err != nil {
		return state, err
	}
	reserve := min(mostReserve, size/reserveShare)
	if reserve <= 0 || free < 2*reserve {
		return state, nil
	}
	err = makeReserve(x.file+reserveSuffix, reserve)
	switch {
	case err == nil:
		return ReserveKept, nil
	case disk.IsFull(err):
		return ReserveUsed, nil // others were faster
	}
	return state, fmt.Errorf("keep some room for removals beside the database: %w", err)
}

// makeReserve fills the reserve with so many bytes. On failure it is empty.
func makeReserve(name string, size int64) (err error) {
	// As the database, it may be written by the group.
	file, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|unix.O_NOFOLLOW, 0o664)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Truncate(0))
		}
		err = errors.Join(err, file.Close())
	}()
	for {
		err = unix.Fallocate(int(file.Fd()), 0, 0, size)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.EOPNOTSUPP || err == unix.ENOSYS {
		// Not zeros, of which some file systems keep none.
		_, err = io.CopyN(file, rand.Reader, size)
	}
	return err
}

// releaseReserve gives the room up. It returns false when there was none.
func releaseReserve(path string) (bool, error) {
	if state, err := reserveOf(path); err != nil || state != ReserveKept {
		return false, err
	}
	if err := os.Truncate(path+reserveSuffix, 0); err != nil {
		return false, fmt.Errorf("give up the reserve of the database for a removal: %w", err)
	}
	return true, nil
}

// refillReserve makes sure that the reserve is kept, or was never.
func (x *Index) refillReserve() error {
	state, err := x.Reserve()
	if err == nil && state == ReserveUsed {
		state, err = x.KeepReserve()
	}
	if err == nil && state == ReserveUsed {
		err = fmt.Errorf("%w: write to %s: what is left of its file system is for removals: make room there", ErrFull, x.path)
	}
	return err
}

// Reclaim is [Index.Update] for a transaction by which something is removed, or without
// which nothing could be. When the file system of the database is full, it uses the
// reserve: then f is called again, and has to begin anew.
func (x *Index) Reclaim(ctx context.Context, f func(*Tx) error) error {
	err := x.update(ctx, f)
	if errors.Is(err, ErrFull) && ctx.Err() == nil {
		_, releaseErr := releaseReserve(x.file)
		x.foldLog(ctx)
		if err = x.update(ctx, f); err != nil {
			return errors.Join(err, releaseErr)
		}
	}
	if err == nil {
		if state, _ := x.Reserve(); state == ReserveUsed {
			x.foldLog(ctx)
		}
	}
	return err
}

// foldLog writes what is in the write-ahead log into the database, so that the log
// begins anew. It is done after each removal from the reserve: what the log takes of
// that can't be given to the database any more, which may need a few pages. A failure
// shows when the next removal finds no room.
func (x *Index) foldLog(ctx context.Context) {
	_ = x.readers.do(ctx, func(c *connection) error { return c.script("PRAGMA wal_checkpoint(PASSIVE)") })
}
