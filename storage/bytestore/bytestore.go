// Package bytestore defines the interface [Store], through which a storage keeps the bytes
// of nars. Directories, buckets and caches in front of them implement it; package location
// opens them by URL.
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
	// negative. The reader may return more than length bytes; the caller closes it. It
	// may be a [LocalFile]. A store with checksums verifies them if offset is 0 and
	// length is negative: if they don't match, Read returns [ErrDamaged] instead of
	// the last bytes.
	Open(ctx context.Context, name string, offset, length int64) (io.ReadCloser, Info, error)

	// Stage writes size bytes for the name without making them visible: Stat and
	// Open answer as before until Commit. If from gives fewer or more bytes, the
	// error is [ErrWrongSize] and nothing is kept. If from is also an
	// [io.ReaderAt] of the same bytes from 0 on, the store may read them twice to
	// compute their [Info.Sum].
	Stage(ctx context.Context, name string, from io.Reader, size int64) (Staged, error)

	// Flush makes bytes that were added without Stage, such as an administrator's
	// copy, survive a loss of power after the next Sync. It fails if users without
	// write access to the store can write to them.
	Flush(ctx context.Context, name string) error

	// Sync makes all commits and removals of this store survive a loss of power.
	Sync(ctx context.Context) error

	// Remove deletes the bytes, or temporary bytes by their name in List. It is not
	// an error if they don't exist.
	Remove(ctx context.Context, name string) error

	// List iterates over all names, in no particular order. An error with a name is
	// about that name, such as an unreadable directory, and the iteration continues.
	// An error without a name ends it.
	List(ctx context.Context) iter.Seq2[Info, error]

	// Probe checks, without writing, that the store is readable and, as far as can
	// be known beforehand, writable. It is called often.
	Probe(ctx context.Context) error

	// String names the store in messages to operators.
	String() string

	// IsRemote reports whether calls go over a network.
	IsRemote() bool

	// Concurrency returns how many concurrent calls suit the store.
	Concurrency() int

	// StageFile is Stage for a local file that is no longer written to, without
	// copying it. The file must be open for reading only, unless it is in the
	// store's spool. The store may share the file's content: after Commit, the caller
	// may remove the file but must not modify it. The store may move a file out of
	// its spool. The error is [ErrCantShare] if the caller must copy the file with
	// Stage instead, for example because another user may write to it.
	StageFile(ctx context.Context, name string, file *os.File, size int64) (Staged, error)

	// Spool returns a local directory for files that arrive in parts, for use with
	// StageFile, and creates it if necessary. The caller names, writes and removes the
	// files in it; List reports them as temporary. The error is
	// [errors.ErrUnsupported] for a store without a spool.
	Spool() (directory string, err error)

	// MayRemove returns an error if this process can't remove the bytes under the
	// name; nil if that isn't known beforehand.
	MayRemove(name string) error

	// ListUnfinished lists temporary bytes as List does, without listing the rest. It
	// skips those that were written to after the given time. The error is
	// [errors.ErrUnsupported] for a store that can't.
	ListUnfinished(ctx context.Context, before time.Time) iter.Seq2[Info, error]

	// FreeSpace returns how many bytes this process can still write to the store's
	// file system, and the size of the file system. The error is
	// [errors.ErrUnsupported] for a store without a file system.
	FreeSpace() (free, size int64, err error)

	// Presign returns a URL that serves the bytes under the name to anybody for the
	// given lifetime. It doesn't check that they exist. The error is
	// [errors.ErrUnsupported] for a store without such URLs.
	Presign(ctx context.Context, name string, lifetime time.Duration) (string, error)

	// Invalidate forces the next Open of the name to revalidate the store's cached
	// copy. It returns false for a store without a cache.
	Invalidate(name string) bool
}

// localConcurrency lets a disk process several requests.
const localConcurrency = 4

// Defaults implements the optional capabilities as unsupported, for a local store.
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

// LocalFile is a reader of a local file, which the caller can send with sendfile(2).
type LocalFile interface {
	io.ReadCloser
	// Local returns the file, and the offset of the next Read. The file may have other
	// readers, so its own position is meaningless. It is valid until Close.
	Local() (file *os.File, offset int64)
}

// FileReader is a [LocalFile] that reads a file from an offset on.
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

// GrowingFile is a LocalFile that is still being written. If writing it fails, Read may
// read from another source.
type GrowingFile interface {
	LocalFile
	// Next waits for bytes, and returns how many are available at the offset of Local.
	// After an error, call Read.
	Next() (int64, error)
	// Skip advances the offset by bytes that the caller has read from the file itself.
	Skip(n int64)
}

// Staged is content that is written but not visible yet. Finish it with Commit, CommitNew
// or Abort.
type Staged interface {
	// Commit makes the bytes visible under their name, atomically replacing any others.
	// They survive a loss of power after the store's Sync. After a success, another call
	// does nothing.
	Commit(ctx context.Context) error
	// CommitNew is Commit for a name without bytes; otherwise the error is
	// [fs.ErrExist]. Of several concurrent calls, one succeeds; on a server or file
	// system without exclusive creation, several may.
	CommitNew(ctx context.Context) error
	// Abort deletes the bytes. After Commit it does nothing.
	Abort()
}

// Info describes bytes in a store.
type Info struct {
	Name string
	// Size is the length in bytes; Usage is the space that they use in the store.
	Size, Usage int64
	ModTime     time.Time
	// Changed is the ctime of a local file, which users can't set; otherwise it is zero.
	Changed time.Time
	// Tag differs between two contents of the name; "" if the store has no tags.
	Tag string
	// Sum is the first half of the SHA-256 of the bytes, if the store records it;
	// otherwise it is zero. List may omit it.
	Sum [16]byte
	// Temporary means that the bytes are from an unfinished Stage: List yields them, Stat
	// and Open do not.
	Temporary bool
	// Linked means that the bytes have other names outside of the store, such as in an
	// export: removing this one frees no space. Not all stores know.
	Linked bool
}

// IsSame reports whether size, time and tag of both are equal.
func (i Info) IsSame(other Info) bool {
	return i.Size == other.Size && i.ModTime.Equal(other.ModTime) && i.Tag == other.Tag
}

var (
	// ErrWrongSize means that there are fewer or more bytes than announced.
	ErrWrongSize = errors.New("wrong size")
	// ErrDamaged means that the bytes are not those that were stored. Reading them again
	// doesn't help.
	ErrDamaged = errors.New("damaged in the storage")
	// ErrCantShare means that a file must be copied.
	ErrCantShare = errors.New("can't be shared with the storage")
	// ErrNotInPlace means that a store's directory was moved or unmounted.
	ErrNotInPlace = errors.New("is no longer the directory it was at start")
	// ErrOutside means that a symbolic link leads out of the store.
	ErrOutside = errors.New("leads out of the storage")
)
