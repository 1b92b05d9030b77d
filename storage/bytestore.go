package storage

import (
	"context"
	"errors"
	"io"
	"iter"
	"os"
	"time"
)

// ByteStore keeps the bytes of nars, each under its name: the path that a
// narinfo's URL gives, such as "nar/lzip/HASH-NAME". Names are relative, with
// forward slashes, cleaned and free of "..": [narinfo.File.Path] makes them.
//
// A store tells three answers apart: there, certainly not there, which is an
// error that is [fs.ErrNotExist], and not known, which is any other error.
// Nothing may be deleted, and no client told "not found", on the third.
//
// Methods may be called from several goroutines and processes at once. Every
// store passes the suite of package storagetest.
type ByteStore interface {
	// Stat describes the bytes under the name.
	Stat(ctx context.Context, name string) (Info, error)

	// Open reads length bytes from offset on, or all that follow when length
	// is negative. The reader may give more than length; it is the caller's
	// to close. It may be a [LocalFile]. Some stores have checksums, and compare
	// what is read with them where offset is 0 and length negative: the error is
	// [ErrDamaged] then, in the place of the last bytes.
	Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, Info, error)

	// Stage takes in size bytes for the name, without showing them: Stat and
	// Open answer as before until Commit. When from gives fewer or more
	// bytes, the error is [ErrWrongSize] and nothing is kept. If from is an
	// [io.ReaderAt] as well, of the same bytes from 0 on, the store may read them
	// twice to find their [Info.Sum].
	Stage(ctx context.Context, name string, from io.Reader, size int64) (Staged, error)

	// Flush makes bytes that came into the store by another way than Stage,
	// such as an administrator's copy, survive a loss of power after the next
	// Sync. It is an error when users could write to them who may not write to
	// the store.
	Flush(ctx context.Context, name string) error

	// Sync makes all that this store has committed or removed survive a loss
	// of power.
	Sync(ctx context.Context) error

	// Remove deletes the bytes, also temporary ones under the name that List
	// gave. That they are not there is no error.
	Remove(ctx context.Context, name string) error

	// List goes through all names, in no order. An error that comes with a name
	// is about what lies under it, such as a directory that can't be read, and
	// those who go on get the rest. One without a name ends it.
	List(ctx context.Context) iter.Seq2[Info, error]

	// Probe tries, without writing anything, whether the store can be read at all, and
	// written as far as that can be told beforehand. It is called often.
	Probe(ctx context.Context) error

	// String names the store in messages to operators.
	String() string
}

// LocalFile is a reader of bytes in a file of this machine, from where the
// kernel can send them.
type LocalFile interface {
	io.ReadCloser
	// Local returns the file, and where in it the next Read begins. Others may
	// be reading it: its own position means nothing. It is good until Close.
	Local() (file *os.File, offset int64)
}

// FileReader is a [LocalFile]: a file from an offset on.
type FileReader struct {
	File   *os.File
	Offset int64
}

// Read implements [io.Reader].
func (r *FileReader) Read(p []byte) (int, error) {
	n, err := r.File.ReadAt(p, r.Offset)
	r.Offset += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Local implements [LocalFile].
func (r *FileReader) Local() (*os.File, int64) { return r.File, r.Offset }

// Close implements [io.Closer]. A second call does nothing.
func (r *FileReader) Close() error {
	if err := r.File.Close(); !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// GrowingFile is a LocalFile that is still being written, and whose Read may have
// other ways when that goes wrong.
type GrowingFile interface {
	LocalFile
	// Next waits until there is something to read, and returns how many bytes
	// follow from where Local says. With an error, Read is to be tried.
	Next() (int64, error)
	// Skip moves on by bytes that were taken out of the file.
	Skip(n int64)
}

// Staged is content that waits to be shown. Each method ends it, unless it fails.
type Staged interface {
	// Commit shows the bytes under their name, in the place of any that were
	// there, all at once. They survive a loss of power after the store's Sync.
	// Once it has succeeded, another call does nothing.
	Commit(ctx context.Context) error
	// CommitNew is Commit for a name that has no bytes: of several at once, one
	// succeeds. The error is [fs.ErrExist] where there are some. On a server or file
	// system without such a call, all of several at once may succeed.
	CommitNew(ctx context.Context) error
	// Abort drops the bytes. After Commit it does nothing.
	Abort()
}

// FileStager is a ByteStore that can take in a file of the machine without
// copying it, where both lie on one file system.
type FileStager interface {
	// StageFile is Stage for a file that nobody writes to any more. It must be open
	// for reading alone, unless it is in the store's spool. The store
	// may share it: the caller then removes its name, and nothing else, once
	// the bytes are committed. One of its own spool it may move, and the name
	// is gone then. The error is [ErrCantShare] when the file must be copied
	// with Stage, such as one that another user may write to.
	StageFile(ctx context.Context, name string, file *os.File, size int64) (Staged, error)
}

// Spooler is a ByteStore with room for files that come bit by bit, from where
// its StageFile can take them in.
type Spooler interface {
	// Spool returns a directory of the machine, which is made if need be. What
	// lies in it is the caller's to name, write and remove; List shows it as
	// temporary. The error is [errors.ErrUnsupported] where there is none.
	Spool() (directory string, err error)
}

// RemovalChecker is a ByteStore that can tell beforehand that bytes can't be removed.
type RemovalChecker interface {
	// MayRemove returns an error where this process may not remove the bytes under
	// the name.
	MayRemove(name string) error
}

// Distant is a ByteStore whose calls each take their time, as over a network, and
// that is good at many at once.
type Distant interface {
	// AtOnce is how many calls at a time are good.
	AtOnce() int
}

// Presigner is a ByteStore from which clients can be sent bytes without this
// program in between.
type Presigner interface {
	// Presign returns a URL with which anybody can get the bytes under the name
	// for that long. Whether they are there, it does not say.
	Presign(ctx context.Context, name string, lifetime time.Duration) (string, error)
}

// Doubter is a ByteStore whose Open may give what the name had a moment ago.
type Doubter interface {
	// Doubt has the next Open of the name make sure.
	Doubt(name string)
}

// Info describes bytes in a store.
type Info struct {
	Name string
	// Size is the length in bytes; Usage is what it takes of the store, which
	// is what a limit on the store is about.
	Size, Usage int64
	ModTime     time.Time
	// Changed is when the bytes or what describes them changed last, by the clock of
	// the file system, which nobody can set back for a file. Zero where the bytes are
	// not in a file of this machine.
	Changed time.Time
	// Tag tells one content of the name from another, where the store has
	// something that does; "" where it hasn't.
	Tag string
	// Sum is the first half of the SHA-256 of the bytes, where the store keeps it with
	// them. Zero where it doesn't; List may leave it out.
	Sum [16]byte
	// Temporary says that it is left from a Stage that never came to its end,
	// or one that is under way: List shows them, Stat and Open do not.
	Temporary bool
	// Linked says that the bytes have other names outside of the store, such as in
	// an export: to remove this one frees nothing. Not all stores know.
	Linked bool
}

var (
	// ErrWrongSize says that bytes are fewer or more than was said.
	ErrWrongSize = errors.New("wrong size")
	// ErrDamaged says that bytes which were read are not those that were stored.
	// To read the last of them again is no cure.
	ErrDamaged = errors.New("damaged in the storage")
	// ErrCantShare says that a file must be copied.
	ErrCantShare = errors.New("can't be shared with the storage")
	// ErrNotInPlace says that a store's directory was moved or unmounted.
	ErrNotInPlace = errors.New("is no longer the directory it was at start")
	// ErrOutside says that a name leads out of the store by a symbolic link.
	ErrOutside = errors.New("leads out of the storage")
)
