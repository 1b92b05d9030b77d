package mirror

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/disk"
	"nar-herder/peer"
	"nar-herder/storage/index"
)

// isLocal says whether an error is a fault of this machine, so that neither the
// source nor what came from it has to do with it.
func isLocal(err error) bool {
	var path *fs.PathError
	var link *os.LinkError
	var failure *sqlite.Error
	switch {
	case errors.As(err, &path), errors.As(err, &link), disk.IsFull(err), errors.Is(err, index.ErrFull), errors.Is(err, index.ErrReadOnly):
		return true
	case errors.As(err, &failure):
		switch failure.Code() & 0xff {
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH:
			return false // of the database that came, it may be
		}
		return true
	}
	return false
}

// localFault is what others than the operators of this machine are told of its
// faults.
const localFault = "a fault of this machine: see its log"

// publicError is an error as the health tells it: without text of the source, which may
// be of another server that it redirects to, and without names of files here. Those of
// downloads begin with the database's.
func publicError(err error, downloads string) string {
	database := strings.TrimSuffix(downloads, downloadsSuffix)
	names := func(text string) bool { return strings.Contains(database, "/") && strings.Contains(text, database) }
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		return refused.Why
	case errors.Is(err, errBadDump):
		return errBadDump.Error() + ": see the log of this machine"
	case isLocal(err), names(err.Error()):
		return localFault
	}
	for _, known := range []error{
		errOldDump, peer.ErrNotReady, peer.ErrNoDump, peer.ErrDamaged, peer.ErrSilent, peer.ErrSlow, peer.ErrAnswer, syscall.ECONNREFUSED, context.DeadlineExceeded,
	} {
		if errors.Is(err, known) {
			return "the mirrored instance: " + known.Error()
		}
	}
	return sourceFault
}

// sourceFault is what others than the operators are told of other faults of the source:
// the errors have text of it.
const sourceFault = "the mirrored instance can't be asked, or its answer makes no sense: see the log of this machine"

// reminder keeps the log from telling the same again and again.
type reminder struct {
	text string
	at   time.Time
}

// logAgain is how often the same is told in the log.
const logAgain = time.Hour

// due says whether a text is news, or was told long ago, and that it is told now.
func (r *reminder) due(now time.Time, text string) bool {
	if text == r.text && now.Sub(r.at) < logAgain {
		return false
	}
	r.text, r.at = text, now
	return true
}

// log tells it when it is due.
func (r *reminder) log(log *slog.Logger, level slog.Level, now time.Time, text string, attributes ...any) {
	key := text
	for _, attribute := range attributes {
		if err, ok := attribute.(error); ok {
			key += err.Error()
		} else if word, ok := attribute.(string); ok {
			key += word
		}
	}
	if r.due(now, key) {
		log.Log(context.Background(), level, text, attributes...)
	}
}
