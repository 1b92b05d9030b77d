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
	// maxReserve is enough for the log until it is folded back, also with
	// [Options.Bulk], and as much again.
	maxReserve = 2 * bulkCheckpointBytes
	// reserveShare bounds the reserve on a small file system to one of so many
	// parts.
	reserveShare = 16

	// LeastDisk is the size in bytes of the smallest file system on which the reserve
	// is enough. With less, a single large transaction may need all of it.
	LeastDisk = 2 * checkpointBytes * reserveShare
)

// reserveSize is how large the reserve is on a file system of so many bytes.
func reserveSize(size int64) int64 { return min(maxReserve, size/reserveShare) }

// longestLog is how long the log may get, of what would be best, before it is folded
// back. Folding it back takes up to as much room in the database, and the reserve must
// be enough for that and for removals, whoever filled the file system.
func (x *Index) longestLog(best int64) int64 {
	if x.reserve == 0 {
		return best // none is kept, as the file system has no size
	}
	return max(pageSize, min(best, x.reserve/2))
}

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
func reserveOf(path string) (state Reserve, size int64, err error) {
	info, err := os.Stat(path + reserveSuffix)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return NoReserve, 0, nil
	case err != nil:
		return NoReserve, 0, fmt.Errorf("look for the reserve of the database: %w", err)
	case info.Size() == 0:
		return ReserveUsed, 0, nil
	}
	return ReserveKept, info.Size(), nil
}

// Reserve returns the state of the reserve.
func (x *Index) Reserve() (Reserve, error) {
	state, _, err := reserveOf(x.file)
	return state, err
}

// KeepReserve makes the reserve where it is not there, or is smaller than it should be
// as the file system has grown, if there is room for it, with as much again beside it.
// It returns the state of the reserve.
func (x *Index) KeepReserve() (Reserve, error) {
	state, kept, err := reserveOf(x.file)
	if err != nil {
		return state, err
	}
	free, size, err := disk.Room(x.Directory())
	if err != nil {
		return state, err
	}
	reserve := reserveSize(size)
	if reserve <= kept || free < 2*reserve-kept {
		return state, nil
	}
	err = makeReserve(x.file+reserveSuffix, kept, reserve, unix.Fallocate)
	switch {
	case err == nil:
		return ReserveKept, nil
	case disk.IsFull(err) && kept == 0:
		return ReserveUsed, nil // others were faster
	case disk.IsFull(err):
		return state, nil
	}
	return state, fmt.Errorf("keep some room for removals beside the database: %w", err)
}

// makeReserve fills the reserve with so many bytes. On failure it has as many as before.
// allocate is [unix.Fallocate].
func makeReserve(name string, kept, size int64, allocate func(fd int, mode uint32, offset, length int64) error) (err error) {
	// As the database, it may be written by the group.
	file, err := disk.OpenFile(name, os.O_WRONLY|unix.O_NOFOLLOW, 0o664, disk.GroupWrites)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, file.Truncate(kept))
		}
		err = errors.Join(err, file.Close())
	}()
	for {
		err = allocate(int(file.Fd()), 0, 0, size)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil && err != unix.EOPNOTSUPP && err != unix.ENOSYS {
		return err
	}
	var stat unix.Stat_t
	if err := unix.Fstat(int(file.Fd()), &stat); err != nil {
		return err
	}
	if stat.Blocks*512 >= size {
		return nil
	}
	// ZFS allocates nothing, without an error. Not zeros, of which some file systems
	// keep none.
	if _, err := io.CopyN(file, rand.Reader, size); err != nil {
		return err
	}
	return file.Sync()
}

// releaseReserve gives the room up. It returns false when there was none.
func releaseReserve(path string) (bool, error) {
	if state, _, err := reserveOf(path); err != nil || state != ReserveKept {
		return false, err
	}
	if err := os.Truncate(path+reserveSuffix, 0); err != nil {
		return false, fmt.Errorf("give up the reserve of the database for a removal: %w", err)
	}
	return true, nil
}

// refillReserve makes sure that the reserve is kept, or was never, or that it is not
// needed for what is to be written.
func (x *Index) refillReserve(ctx context.Context) error {
	if x.IsFull() {
		return nil // writing fails
	}
	state, err := x.Reserve()
	if err == nil && state == ReserveKept {
		return x.boundLog(ctx)
	}
	if err == nil && state == ReserveUsed {
		state, err = x.KeepReserve()
		if errors.Is(err, fs.ErrPermission) {
			return nil // there is room, and whose it is will see to it
		}
	}
	if err != nil || state != ReserveUsed {
		return err
	}
	// SQLite gives no room back to the file system, which may have little else than
	// the database. What is written there, in the room of what was removed, takes
	// nothing of what is left but the log.
	within, err := x.freeWithin(ctx)
	if err == nil && within < x.reserve {
		err = fmt.Errorf("%w: write to %s: what is left of its file system is for removals: make %d MiB of room there, or remove items until the database has %d MiB free within, %d more than now",
			ErrFull, x.path, mebi(2*x.reserve), mebi(x.reserve), mebi(x.reserve-within))
	}
	return err
}

// mebi rounds bytes up to MiB.
func mebi(n int64) int64 { return (n + 1<<20 - 1) >> 20 }

// freeWithin returns how many bytes of the database are free for other rows.
func (x *Index) freeWithin(ctx context.Context) (n int64, err error) {
	err = x.readers.do(ctx, func(c *connection) (err error) {
		n, err = c.integer("PRAGMA freelist_count")
		return err
	})
	if err != nil {
		return 0, describe("read "+x.path, err)
	}
	return n * pageSize, nil
}

// boundLog refuses to let the log grow when there is too little room to fold it back
// without the reserve. It is longer than [Index.longestLog] while a reader needs what
// the database has, and after a very large transaction.
func (x *Index) boundLog(ctx context.Context) error {
	size := func() (int64, error) {
		info, err := os.Stat(x.file + "-wal")
		if errors.Is(err, fs.ErrNotExist) {
			return 0, nil
		} else if err != nil {
			return 0, fmt.Errorf("look for the log of the database: %w", err)
		}
		return info.Size(), nil
	}
	log, err := size()
	if err != nil || log <= x.reserve/4*3 {
		return err
	}
	free, _, err := disk.Room(x.Directory())
	if err != nil || free >= log {
		return err
	}
	// It may be in the database already; a failure shows in its size.
	x.foldLog(ctx, "TRUNCATE")
	if log, err = size(); err != nil || free >= log {
		return err
	}
	return fmt.Errorf("%w: write to %s: its log has %d MiB, and %d MiB are free to fold it back: make room there",
		ErrFull, x.path, log>>20, free>>20)
}

// Reclaim is [Index.Update] for a transaction by which something is removed, or without
// which nothing could be. When the file system of the database is full, it uses the
// reserve: then f is called again, and has to begin anew.
func (x *Index) Reclaim(ctx context.Context, f func(*Tx) error) error {
	err := x.update(ctx, f)
	if errors.Is(err, ErrFull) && ctx.Err() == nil {
		_, releaseErr := releaseReserve(x.file)
		x.foldLog(ctx, "PASSIVE")
		if err = x.update(ctx, f); err != nil {
			return errors.Join(err, releaseErr)
		}
	}
	if err == nil {
		x.foldUsed(ctx)
	}
	return err
}

// foldUsed folds the log back after each transaction while the reserve is used: what the
// log takes of that can't be given to the database any more, which may need a few pages.
// A failure shows when the next removal finds no room.
func (x *Index) foldUsed(ctx context.Context) {
	if state, _ := x.Reserve(); state == ReserveUsed {
		x.foldLog(ctx, "PASSIVE")
	}
}

// foldLog writes what is in the write-ahead log into the database, so that the log
// begins anew.
func (x *Index) foldLog(ctx context.Context, mode string) {
	_ = x.readers.do(ctx, func(c *connection) error { return c.script("PRAGMA wal_checkpoint(" + mode + ")") })
}
