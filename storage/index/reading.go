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

// Opening a database with a write-ahead log for reading has a pitfall. Beside the database
// file are the log (-wal) and its index in shared memory (-shm). Every connection needs
// both, and creates missing ones; the last connection removes them when it closes, if it
// can write. A connection with mode=ro can't, so it would leave them behind, with the owner
// and mode of the user who ran the command.
//
// So there are two cases:
//
//   - If another process has the database open, the log exists. A connection with mode=ro
//     and readonly_shm=1 uses it without writing. This also works after a crash: SQLite
//     then builds the index of the log in memory.
//   - Otherwise there is only the file, and immutable=1 reads it without locks and without
//     a log. A process that opens the database later writes to the log first. A checkpoint
//     may then change the file under the reader, and the file's modification time shows
//     that.

// sharedLog is the parameter of connections that use the index of the log read-only.
const sharedLog = "readonly_shm=1"

// isLogChanging reports whether a read-only connection failed because another process was
// changing the index of the log. Other connections would repair the index or add an entry
// to it. A read-only one has to retry, which SQLite leaves to the caller:
//
//   - SQLITE_READONLY_RECOVERY: a process was writing the header, or has opened the
//     database and not built the index yet.
//   - SQLITE_READONLY_CANTINIT: after the connection read the header, a transaction was
//     committed, and another reader advanced its entry.
func isLogChanging(code int) bool {
	return code == sqlite3.SQLITE_READONLY_RECOVERY || code == sqlite3.SQLITE_READONLY_CANTINIT
}

// ErrChanged means that another process wrote to a database while it was read without
// locks.
var ErrChanged = errors.New("another process has changed the database meanwhile")

// closingWait is how long to wait if a log has no index: a process that closes the database
// removes the index first.
const closingWait = time.Second

// openForReading opens the connections of a read-only index.
func (x *Index) openForReading(ctx context.Context, absolute string, cacheBytes int64, count, newest int) error {
	for end := time.Now().Add(closingWait); ; {
		err := x.tryReading(ctx, absolute, cacheBytes, count, newest)
		var failure *sqlite.Error
		isFailure := errors.As(err, &failure) && slices.Contains([]int{sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}, failure.Code()&0xff)
		if !isFailure && !errors.Is(err, errNoLogIndex) && !errors.Is(err, ErrChanged) {
			return err
		}
		// Another process is opening, closing or writing it, or this process may not read
		// it.
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

// errNoLogIndex means that reading the log requires writing its index.
var errNoLogIndex = errors.New("there is a log of changes, but not its index (-shm), and no process has it open: start the server, or run 'nar-herder migrate', which fold the log back")

func (x *Index) tryReading(ctx context.Context, absolute string, cacheBytes int64, count, newest int) (err error) {
	parameters := "?mode=ro&_query_only=on&_pragma=temp_store(memory)&_pragma=cache_size(-" + strconv.FormatInt(max(cacheBytes/1024, 64), 10) + ")"
	changed, live, err := look(x.file)
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
	for _, c := range x.readers.idle {
		c.changed = changed
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

// look reports whether a process may have the database open. If none has, changed reports
// whether one has written to the file since; otherwise changed is nil.
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
