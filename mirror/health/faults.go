package health

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"nar-herder/internal/disk"
	"nar-herder/peer"
	"nar-herder/peer/download"
	"nar-herder/storage/index"
)

var (
	// ErrBadDump reports a dump that can't be used.
	ErrBadDump = errors.New("its dump makes no sense")
	// ErrOldDump reports a dump that ends before the source's log of changes begins.
	ErrOldDump = errors.New("its dump is older than its log of changes")
)

// RefusedError says why a source is not followed: what it publishes may be a mistake that
// would lose much.
type RefusedError struct{ Why string }

func (e *RefusedError) Error() string { return e.Why }

// IsLocal reports whether an error is a fault of this machine, and not of the source or of
// what it sent.
func IsLocal(err error) bool {
	var path *fs.PathError
	var link *os.LinkError
	var failure *sqlite.Error
	switch {
	case errors.As(err, &path), errors.As(err, &link), disk.IsFull(err), errors.Is(err, index.ErrFull), errors.Is(err, index.ErrReadOnly):
		return true
	case errors.As(err, &failure):
		switch failure.Code() & 0xff {
		case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_MISMATCH:
			return false // may be a fault of the downloaded database
		}
		return true
	}
	return false
}

// localFault is the public text for faults of this machine.
const localFault = "a fault of this machine: see its log"

// sourceFault is the public text for other faults of the source: the errors quote it.
const sourceFault = "the mirrored instance can't be asked, or its answer makes no sense: see the log of this machine"

// Public returns an error for the public health report: without text from the source,
// which may be that of a server it redirects to, and without names of files of this
// machine, which begin with the name of the database.
func Public(err error, database string) string {
	names := func(text string) bool { return strings.Contains(database, "/") && strings.Contains(text, database) }
	var refused *RefusedError
	switch {
	case errors.As(err, &refused):
		return refused.Why
	case errors.Is(err, ErrBadDump):
		return ErrBadDump.Error() + ": see the log of this machine"
	case IsLocal(err), names(err.Error()):
		return localFault
	}
	for _, known := range []error{
		ErrOldDump, download.ErrNotReady, download.ErrNone, peer.ErrDamaged, peer.ErrSilent, peer.ErrSlow, peer.ErrAnswer, syscall.ECONNREFUSED, context.DeadlineExceeded,
	} {
		if errors.Is(err, known) {
			return "the mirrored instance: " + known.Error()
		}
	}
	return sourceFault
}
