package index

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/pace"
)

// A database with a write-ahead log can't simply be opened for reading. Beside the
// file FILE are the log, FILE-wal, and its index in shared memory, FILE-shm. Every
// connection needs both, and makes those that are missing; the last one to close
// removes them, if it can write. A connection with mode=ro can't, so it would leave
// them behind, with the owner and mode of the user who ran the command.
//
// So there are two ways:
//
//   - While another process has the database open, the log is there. A connection
//     with mode=ro and readonly_shm=1 uses it as it is. So it does after a crash: with
//     nobody there to share the index of the log with, SQLite makes one in memory.
//   - Otherwise the file is all there is, and is read with immutable=1, which takes
//     no locks and looks for no log. A process that opens the database later writes
//     to the log first. Only when that is folded back into the file, what was read
//     may be of two moments, and that shows in the file's time.

// sharedLog is the parameter of connections that use the index of the log as it is.
const sharedLog = "readonly_shm=1"

// isLogChanging says whether the failure of such a connection is that it has looked at
// the index of the log while another process was changing it. Others repair there what
// is half done, or make an entry of what they have seen of the log. One that can't write
// has to look again, which SQLite leaves to the caller:
//
//   - SQLITE_READONLY_RECOVERY: the header was being written, or a process that opens
//     the database has not built the index yet.
//   - SQLITE_READONLY_CANTINIT: after the connection has read the header, a transaction
//     was committed, and another reader has moved the entry to that.
func isLogChanging(code int) bool {
	return code == sqlite3.SQLITE_READONLY_RECOVERY || code == sqlite3.SQLITE_READONLY_CANTINIT
}

// ErrChanged says that a database that nobody had open was written while it was
// being read.
var ErrChanged = errors.New("another process has changed the database meanwhile")

// closingWait is how long a log without its index is waited for. A process that
// closes the database removes first the one and then the other.
const closingWait = time.Second

// openForReading opens the connections of an index that is never written.
func (x *Index) openForReading(ctx context.Context, absolute string, cacheBytes int64, count, newest int) error {
	for end := time.Now().Add(closingWait); ; {
		err := x.tryReading(ctx, absolute, cacheBytes, count, newest)
		var failure *sqlite.Error
		isFailure := errors.As(err, &failure) && slices.Contains([]int{sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}, failure.Code()&0xff)
		if !isFailure && !errors.Is(err, errNoLogIndex) && !errors.Is(err, ErrChanged) {
			return err
		}
		// Another process has opened or closed it at this moment, or has written to
		// it, or it can't be read at all.
		if time.Now().After(end) {
			if isFailure {
				err = fmt.Errorf("%w: let the user or group of this process read %s, and %[2]s-wal and %[2]s-shm where they exist", failure, x.path)
			}
			return fmt.Errorf("database %s: open it for reading: %w", x.path, err)
		}
		if err := pace.Sleep(ctx, 5*time.Millisecond); err != nil {
			return err
		}
	}
}

// errNoLogIndex says that a log can't be read without writing.
var errNoLogIndex = errors.New("there is a log of changes, but not its index (-shm), and no process has it open: start the server, or run 'nar-herder migrate', which fold the log back")

func (x *Index) tryReading(ctx context.Context, absolute string, cacheBytes int64, count, newest int) (err error) {
	parameters := "?mode=ro&_query_only=on&_pragma=temp_store(memory)&_pragma=cache_size(-" + strconv.FormatInt(max(cacheBytes/1024, 64), 10) + ")"
	changed, live, err := look(absolute)
	if err != nil {
		return err
	}
	if live {
		parameters += "&" + sharedLog
	} else {
		parameters += "&immutable=1"
	}
	x.source = fileName(absolute) + parameters
	tried := fmt.Sprintf("database %s: open it for reading", x.path)
	if x.readers, err = openPool(ctx, x.source, count); err != nil {
		return describe(tried, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.readers.close())
		}
	}()
	x.changed = changed
	for range count {
		c := <-x.readers
		c.changed = changed
		x.readers <- c
	}
	return x.readers.do(ctx, func(c *connection) error {
		version, err := recognise(c, x.path, newest)
		if err != nil {
			return err
		}
		if err := (&Options{Access: Read}).accepts(x.path, version, newest); err != nil {
			return err
		}
		if x.codec, err = openCodec(c, false); err != nil {
			return describe(tried, err)
		}
		if x.instance, err = openInstance(c, false); err != nil {
			return describe(tried, err)
		}
		return nil
	})
}

// look finds out whether a process may have the database open. If none has, changed
// says whether one has written to the file since; otherwise it is nil.
func look(absolute string) (changed func() error, live bool, err error) {
	before, err := os.Stat(absolute)
	if err != nil {
		return nil, false, err
	}
	log, logErr := os.Stat(absolute + "-wal")
	_, indexErr := os.Stat(absolute + "-shm")
	switch {
	case errors.Is(logErr, fs.ErrNotExist), logErr == nil && log.Size() == 0 && errors.Is(indexErr, fs.ErrNotExist):
		changed = func() error {
			after, err := os.Stat(absolute)
			if err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) || before.Size() != after.Size() {
				return fmt.Errorf("%w: run this again", ErrChanged)
			}
			return nil
		}
		return changed, false, nil
	case logErr != nil:
		return nil, false, logErr
	case errors.Is(indexErr, fs.ErrNotExist):
		return nil, false, errNoLogIndex
	}
	return nil, true, indexErr
}
