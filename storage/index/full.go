package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"nar-herder/internal/disk"
)

// SQLite can't open a database for writing without room for the log's index.
// [Options.ReadWhenFull] opens it for reading instead, until [Index.Resume] finds room.

// resumeRoom is how many bytes must be free before Resume opens the database for writing:
// enough for a new log and its index.
const resumeRoom = 1 << 20

// IsFull reports whether the index is open for reading only because its file system is
// full. Writes fail with [ErrFull].
func (x *Index) IsFull() bool { return x.full.Load() }

// openFull opens the index for reading, while other processes may write to it.
func openFull(ctx context.Context, path string, options Options) (*Index, error) {
	// If these files exist, readers take locks and see new transactions. Empty files take
	// no room. Without them, SQLite would open the database as immutable.
	for _, suffix := range []string{"-wal", "-shm"} {
		file, err := disk.OpenFile(resolve(path)+suffix, os.O_WRONLY|os.O_EXCL, 0o664, disk.GroupWrites)
		if err == nil {
			err = file.Close()
		}
		if err != nil && !errors.Is(err, fs.ErrExist) && !disk.IsFull(err) {
			return nil, fmt.Errorf("database %s: open it for reading: %w", path, err)
		}
	}
	options.Access = Read
	x, err := open(ctx, path, options, migrations)
	if err != nil {
		return nil, err
	}
	if x.instance == "" {
		return nil, errors.Join(fmt.Errorf("%w: %s is new", ErrFull, path), x.Close())
	}
	x.full.Store(true)
	return x, nil
}

// Resume reopens an index for writing that was opened for reading because its file system
// was full, if there is room now. Readers wait meanwhile.
func (x *Index) Resume(ctx context.Context) error {
	if !x.IsFull() {
		return nil
	}
	free, _, err := disk.Room(x.Directory())
	if err != nil || free < resumeRoom {
		return err
	}
	select {
	case x.writing <- struct{}{}:
		defer func() { <-x.writing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if !x.IsFull() {
		return nil
	}
	// Replace all of them: connections of one process share the index of the log, and
	// read-only connections can't write to it.
	lent := make([]*connection, 0, x.readers.size())
	defer func() {
		for _, c := range lent {
			x.readers.give(c)
		}
	}()
	for range x.readers.size() {
		c, err := x.readers.take(ctx)
		if err != nil {
			return err
		}
		lent = append(lent, c)
	}
	for _, c := range lent {
		_ = c.close()
	}
	lent = nil
	opened, err := open(ctx, x.path, Options{Access: Write}, migrations)
	if err == nil && opened.instance != x.instance {
		err = errors.Join(fmt.Errorf("%s is not the database that the server started with: restart the server", x.path), opened.Close())
	}
	if err != nil {
		// If the old connections can't be reopened now, retry when they are used.
		for range x.readers.size() {
			lent = append(lent, &connection{reopen: x.source})
		}
		return err
	}
	for i, c := range opened.readers.idle {
		if i < x.readers.size() {
			lent = append(lent, c)
		} else { // the number of processors has changed
			_ = c.close() // it was only read
		}
	}
	opened.codec.close()
	x.writer, x.source, x.reserve, x.changed = opened.writer, opened.source, opened.reserve, nil
	x.full.Store(false)
	return nil
}
