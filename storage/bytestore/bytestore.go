// Package bytestore is what a storage needs of the place where it keeps bytes: the
// interface [Store], which directories, buckets and caches in front of them implement.
package bytestore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"time"
)

// Store keeps the bytes of nars, each under its name: the path that a narinfo's
// URL gives, such as "nar/lzip/HASH-NAME". Names are relative, with forward
// slashes, cleaned and free of "..": [narinfo.File.Path] makes them.
//
// A store distinguishes three answers: present, absent, which is an error that is
// [fs.ErrNotExist], and unknown, which is any other error. On the third, callers
// delete nothing and tell no client "not found".
//
// Methods may be called from several goroutines and processes at once. Every
// store passes the suite of package storagetest. A store that lacks some of the
// capabilities at the end embeds [Defaults]; a store in front of another embeds that.
type Store interface {
	// Stat describes the bytes under the name.
	Stat(ctx context.Context, name string) (Info, error)

	// Open reads length bytes from offset on, or all that follow if length is
	// negative. The reader may give more than length; the caller closes it. It
	// may be a [LocalFile]. A store that keeps checksums compares them if offset
	// is 0 and length is negative: the error is [ErrDamaged] then, in the place
	// of the last bytes.
	Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, Info, error)

	// Stage writes size bytes for the name without making them visible: Stat and
	// Open answer as before until Commit. If from gives fewer or more bytes, the
	// error is [ErrWrongSize] and nothing is kept. If from is also an
	// [io.ReaderAt] of the same bytes from 0 on, the store may read them twice to
	// compute their [Info.Sum].
	Stage(ctx context.Context, name string, from io.Reader, size int64) (Staged, error)

	// Flush makes bytes that came into the store by another way than Stage, such
	// as an administrator's copy, survive a loss of power after the next Sync. It
	// fails if users can write to them who may not write to the store.
	Flush(ctx context.Context, name string) error

	// Sync makes everything that this store has committed or removed survive a
	// loss of power.
	Sync(ctx context.Context) error

	// Remove deletes the bytes, also temporary ones under the name that List
	// gave. It is not an error if they don't exist.
	Remove(ctx context.Context, name string) error

	// List iterates over all names, in no particular order. An error that comes
	// with a name is about that name, such as a directory that can't be read, and
	// the iteration continues. An error without a name ends it.
	List(ctx context.Context) iter.Seq2[Info, error]

	// Probe checks, without writing anything, that the store can be read and, as
	// far as that can be told beforehand, written. It is called often.
	Probe(ctx context.Context) error

	// String names the store in messages to operators.
	String() string

	// IsRemote reports whether calls go over a network.
	IsRemote() bool

	// Concurrency returns how many calls at a time suit the store.
	Concurrency() int

	// StageFile is Stage for a local file that nobody writes to any more, without
	// copying it. The file must be open for reading only, unless it is in the
	// store's spool. The store may share it: the caller then removes its name, and
	// nothing else, once the bytes are committed. A file of its own spool it may
	// move, and the name is gone then. The error is [ErrCantShare] if the file must
	// be copied with Stage, such as one that another user may write to.
	StageFile(ctx context.Context, name string, file *os.File, size int64) (Staged, error)

	// Spool returns a local directory for files that arrive piece by piece, from
	// which StageFile can take them; it is made if need be. The caller names,
	// writes and removes the files in it; List shows them as temporary. The error
	// is [errors.ErrUnsupported] for a store that has none.
	Spool() (directory string, err error)

	// MayRemove returns an error if this process can't remove the bytes under the
	// name; nil if that can't be told beforehand.
	MayRemove(name string) error

	// ListUnfinished lists temporary bytes as List does, if none were added to
	// them after the given time, without listing everything else. The error is
	// [errors.ErrUnsupported] for a store that can't.
	ListUnfinished(ctx context.Context, before time.Time) iter.Seq2[Info, error]

	// FreeSpace returns how many bytes this process can still write to the file
	// system of the store, and the size of that. The error is
	// [errors.ErrUnsupported] for a store that has no file system.
	FreeSpace() (free, size int64, err error)

	// Presign returns a URL that serves the bytes under the name to anybody for
	// that long. It doesn't say whether they exist. The error is
	// [errors.ErrUnsupported] for a store without such URLs.
	Presign(ctx context.Context, name string, lifetime time.Duration) (string, error)

	// Invalidate forces the next Open of the name to revalidate what the store has
	// cached of it. It returns false for a store that caches nothing.
	Invalidate(name string) bool
}

// localConcurrency lets a disk work on several requests.
const localConcurrency = 4

// Defaults has the capabilities of a plain local store: none.
type Defaults struct{}

// IsRemote implements [Store].
func (Defaults) IsRemote() bool { return false }

// Concurrency implements [Store].
func (Defaults) Concurrency() int { return localConcurrency }

// StageFile implements [Store].
func (Defaults) StageFile(_ context.Context, name string, _ *os.File, _ int64) (Staged, error) {
	return nil, fmt.Errorf("%s: %w", name, ErrCantShare)
}

// Spool implements [Store].
func (Defaults) Spool() (string, error) { return "", errors.ErrUnsupported }

// MayRemove implements [Store].
func (Defaults) MayRemove(string) error { return nil }

// ListUnfinished implements [Store].
func (Defaults) ListUnfinished(context.Context, time.Time) iter.Seq2[Info, error] {
	return func(yield func(Info, error) bool) { yield(Info{}, errors.ErrUnsupported) }
}

// FreeSpace implements [Store].
func (Defaults) FreeSpace() (free, size int64, err error) { return 0, 0, errors.ErrUnsupported }

// Presign implements [Store].
func (Defaults) Presign(context.Context, string, time.Duration) (string, error) {
	return "", errors.ErrUnsupported
}

// Invalidate implements [Store].
func (Defaults) Invalidate(string) bool { return false }

// LocalFile is a reader of bytes in a local file, which the kernel can send.
type LocalFile interface {
	io.ReadCloser
	// Local returns the file, and the offset of the next Read. Others may read the file:
	// its own position means nothing. It is valid until Close.
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

// GrowingFile is a LocalFile that is still being written. Its Read may have other sources
// if that fails.
type GrowingFile interface {
	LocalFile
	// Next waits until there is something to read, and returns how many bytes follow from
	// the offset of Local. After an error, call Read.
	Next() (int64, error)
	// Skip advances by bytes that were taken out of the file.
	Skip(n int64)
}

// Staged is content that is written but not visible yet. Finish it with Commit, CommitNew
// or Abort.
type Staged interface {
	// Commit makes the bytes visible under their name, atomically replacing any others.
	// They survive a loss of power after the store's Sync. After it has succeeded, another
	// call does nothing.
	Commit(ctx context.Context) error
	// CommitNew is Commit for a name without bytes: of several concurrent calls, one
	// succeeds. The error is [fs.ErrExist] if there are bytes. On a server or file system
	// without such a call, all of several may succeed.
	CommitNew(ctx context.Context) error
	// Abort drops the bytes. After Commit it does nothing.
	Abort()
}

// Info describes bytes in a store.
type Info struct {
	Name string
	// Size is the length in bytes; Usage is what the bytes take of the store, for limits.
	Size, Usage int64
	ModTime     time.Time
	// Changed is when the bytes or their metadata changed last, by the clock of the file
	// system, which can't be set back for a file. It is zero for bytes that are not in a
	// local file.
	Changed time.Time
	// Tag distinguishes contents of the name, if the store can; otherwise it is "".
	Tag string
	// Sum is the first half of the SHA-256 of the bytes, if the store keeps it with them;
	// otherwise it is zero. List may omit it.
	Sum [16]byte
	// Temporary says that the bytes are from a Stage that was interrupted or is under way:
	// List yields them, Stat and Open do not.
	Temporary bool
	// Linked says that the bytes have other names outside of the store, such as in an
	// export: removing this one frees nothing. Not all stores know.
	Linked bool
}

// IsSame reports whether both describe the same bytes, as far as they tell.
func (i Info) IsSame(other Info) bool {
	return i.Size == other.Size && i.ModTime.Equal(other.ModTime) && i.Tag == other.Tag
}

var (
	// ErrWrongSize says that there are fewer or more bytes than announced.
	ErrWrongSize = errors.New("wrong size")
	// ErrDamaged says that the bytes read are not those that were stored. Reading the last
	// of them again doesn't help.
	ErrDamaged = errors.New("damaged in the storage")
	// ErrCantShare says that a file must be copied.
	ErrCantShare = errors.New("can't be shared with the storage")
	// ErrNotInPlace says that a store's directory was moved or unmounted.
	ErrNotInPlace = errors.New("is no longer the directory it was at start")
	// ErrOutside says that a symbolic link leads out of the store.
	ErrOutside = errors.New("leads out of the storage")
)
