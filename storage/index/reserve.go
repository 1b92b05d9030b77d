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

// SQLite can't delete anything on a full file system, because a deletion first appends to
// the write-ahead log. So a file beside the database reserves some room, which removals
// release if there is no other. From then on removals are the only writes, until there is
// room to create the reserve again.

const (
	// reserveSuffix is appended to the name of the database.
	reserveSuffix = ".reserve"
	// maxReserve is enough for the log before a checkpoint, also with [Options.Bulk], and
	// for the same amount in the database.
	maxReserve = 2 * bulkCheckpointBytes
	// reserveShare limits the reserve on a small file system to this fraction of its size.
	reserveShare = 16

	// LeastDisk is the size in bytes of the smallest file system for which the reserve is
	// sufficient. On a smaller one, a single large transaction may need all of it.
	LeastDisk = 2 * checkpointBytes * reserveShare
)

// reserveSize returns the intended size of the reserve on a file system of this size.
func reserveSize(size int64) int64 { return min(maxReserve, size/reserveShare) }

// maxLog limits the log's size before a checkpoint, given the preferred size. A checkpoint
// needs up to the same room in the database. The reserve must suffice for that and for
// removals.
func (x *Index) maxLog(best int64) int64 {
	if x.reserve == 0 {
		return best // the size of the file system is unknown
	}
	return max(pageSize, min(best, x.reserve/2))
}

// Reserve is the state of the room reserved for removals.
type Reserve int

const (
	// NoReserve means that this database has no reserve.
	NoReserve Reserve = iota
	// ReserveKept means that the reserve exists.
	ReserveKept
	// ReserveUsed means that the reserve was released for removals, and that other writes
	// are refused.
	ReserveUsed
)

// reserveOf returns the state and size of a database's reserve.
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

// KeepReserve creates the reserve, or extends it after the file system has grown, if the
// file system has room for twice its size. It returns the state of the reserve.
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
		return ReserveUsed, nil // other writes took the room
	case disk.IsFull(err):
		return state, nil
	}
	return state, fmt.Errorf("keep some room for removals beside the database: %w", err)
}

// makeReserve extends the reserve from kept to size bytes. On failure its size is
// unchanged. allocate is [unix.Fallocate].
func makeReserve(name string, kept, size int64, allocate func(fd int, mode uint32, offset, length int64) error) (err error) {
	// Like the database, the reserve is writable by the group.
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
	// Fallocate on ZFS reports success but reserves nothing. Write random bytes, because
	// some file systems store no zeros.
	if _, err := io.CopyN(file, rand.Reader, size); err != nil {
		return err
	}
	return file.Sync()
}

// releaseReserve removes the reserve. It returns false if there was none.
func releaseReserve(path string) (bool, error) {
	if state, _, err := reserveOf(path); err != nil || state != ReserveKept {
		return false, err
	}
	if err := os.Truncate(path+reserveSuffix, 0); err != nil {
		return false, fmt.Errorf("give up the reserve of the database for a removal: %w", err)
	}
	return true, nil
}

// requireReserve returns an error if the reserve is used and can't be created again, unless
// the database itself has enough free pages for the write.
func (x *Index) requireReserve(ctx context.Context) error {
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
			return nil // there is room; the owner of the reserve will create it
		}
	}
	if err != nil || state != ReserveUsed {
		return err
	}
	// SQLite returns no room to the file system, which may contain little besides the
	// database. A write into free pages of the database needs room for the log only.
	within, err := x.freeBytes(ctx)
	if err == nil && within < x.reserve {
		err = fmt.Errorf("%w: write to %s: the remaining room on its file system is for removals: make %d MiB of room there, or remove items until the database has %d MiB of free pages, %d MiB more than now",
			ErrFull, x.path, mebi(2*x.reserve), mebi(x.reserve), mebi(x.reserve-within))
	}
	return err
}

// mebi converts bytes to MiB, rounded up.
func mebi(n int64) int64 { return (n + 1<<20 - 1) >> 20 }

// freeBytes returns the size of the free pages in the database.
func (x *Index) freeBytes(ctx context.Context) (n int64, err error) {
	err = x.readers.do(ctx, func(c *connection) (err error) {
		n, err = c.integer("PRAGMA freelist_count")
		return err
	})
	if err != nil {
		return 0, describe("read "+x.path, err)
	}
	return n * pageSize, nil
}

// boundLog refuses a write if the log is so large that a checkpoint would need the reserve.
// The log exceeds [Index.maxLog] while a reader needs an old snapshot, and after a very
// large transaction.
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
	// The log may be checkpointed already. If this fails, its size stays the same.
	x.checkpoint(ctx, "TRUNCATE")
	if log, err = size(); err != nil || free >= log {
		return err
	}
	return fmt.Errorf("%w: write to %s: its log has %d MiB, and %d MiB are free for a checkpoint: make room there",
		ErrFull, x.path, log>>20, free>>20)
}

// Reclaim is [Index.Update] for a transaction that removes something, or that removals
// require. If the file system of the database is full, it releases the reserve and calls f
// again.
func (x *Index) Reclaim(ctx context.Context, f func(*Tx) error) error {
	err := x.update(ctx, f)
	if errors.Is(err, ErrFull) && ctx.Err() == nil {
		_, releaseErr := releaseReserve(x.file)
		x.checkpoint(ctx, "PASSIVE")
		if err = x.update(ctx, f); err != nil {
			return errors.Join(err, releaseErr)
		}
	}
	if err == nil {
		x.checkpointUsed(ctx)
	}
	return err
}

// checkpointUsed runs a checkpoint after each transaction while the reserve is used: room
// that the log takes is not available to the database, which may need a few pages. If the
// checkpoint fails, the next removal finds no room and reports it.
func (x *Index) checkpointUsed(ctx context.Context) {
	if state, _ := x.Reserve(); state == ReserveUsed {
		x.checkpoint(ctx, "PASSIVE")
	}
}

// checkpoint writes the contents of the write-ahead log to the database, so that the log
// starts over.
func (x *Index) checkpoint(ctx context.Context, mode string) {
	_ = x.readers.do(ctx, func(c *connection) error { return c.script("PRAGMA wal_checkpoint(" + mode + ")") })
}
