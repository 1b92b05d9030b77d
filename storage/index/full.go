package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"nar-herder/internal/disk"
)

// A database can't be opened for writing without room for the index of its log. With
// [Options.ReadWhenFull] it is opened for reading then, until [Index.Resume] finds room.

// resumeRoom is how many bytes must be free before it is tried to open the database for
// writing: enough for the log and its index to begin.
const resumeRoom = 1 << 20

// IsFull says that the index is open for reading alone, as its file system is full.
// Writing fails with [ErrFull].
func (x *Index) IsFull() bool { return x.full.Load() }

// openFull opens the index for reading, beside processes that may write to it later.
func openFull(ctx context.Context, path string, options Options) (*Index, error) {
	// While these exist, readers take locks, and see what others write. An empty file
	// takes no room. Without them, the database is read as it is.
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

// Resume opens an index for writing that was opened for reading as its file system was
// full, if there is room now. Readers wait meanwhile.
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
	// All of them: connections of one process share the index of the log, which those
	// for reading can't write.
	lent := make([]*connection, 0, cap(x.readers))
	defer func() {
		for _, c := range lent {
			x.readers <- c
		}
	}()
	for range cap(x.readers) {
		select {
		case c := <-x.readers:
			lent = append(lent, c)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, c := range lent {
		_ = c.close()
	}
	lent = nil
	opened, err := open(ctx, x.path, Options{Access: Write}, migrations)
	if err == nil && opened.instance != x.instance {
		err = errors.Join(fmt.Errorf("%s is another database than at the start: restart the server", x.path), opened.Close())
	}
	if err != nil {
		// The old ones may fail to open now, but maybe not later.
		for range cap(x.readers) {
			lent = append(lent, &connection{reopen: x.source})
		}
		return err
	}
	for range cap(x.readers) {
		lent = append(lent, <-opened.readers)
	}
	opened.codec.close()
	x.writer, x.source, x.reserve, x.changed = opened.writer, opened.source, opened.reserve, nil
	x.full.Store(false)
	return nil
}
