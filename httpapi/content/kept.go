package content

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"nar-herder/httpapi/engine/admission"
	"nar-herder/internal/disk"
	"nar-herder/storage/bytestore"
)

const (
	// keepOpen is how long a file stays open for further answers: opening and closing is
	// much of the work for small popular nars. It also bounds how long a file is sent
	// after it was removed without the index; changes of the index are noticed earlier.
	keepOpen = 250 * time.Millisecond
	// mostOpen bounds the files that are kept open, if there are enough file descriptors.
	mostOpen = 512
	// mostCached is the largest file that is assumed to be in the page cache once it was
	// sent. Parts of a larger one may have been evicted.
	mostCached = 1 << 20
)

// Sender answers with files. Use [NewSender] to make one.
type Sender struct {
	kept     atomic.Int32 // files that are kept open
	mostKept int32
}

// NewSender makes a sender.
func NewSender() *Sender { return &Sender{mostKept: mostKept(admission.Descriptors())} }

// Kept returns how many files are kept open.
func (s *Sender) Kept() int { return int(s.kept.Load()) }

// mostKept bounds the files that are kept open by a process with so many descriptors.
func mostKept(descriptors int) int32 { return int32(min(mostOpen, descriptors/8)) }

// Kept is a file of an item that may be open. The zero value is not open.
type Kept struct{ atomic.Pointer[openFile] }

// openFile is an open file that answers share.
type openFile struct {
	file       *os.File
	size       int64
	validators *validators
	opened     io.Closer
	// remote is whether reads may go to another machine, as with NFS.
	remote bool
	// users counts answers, and the Kept. The last user closes the file.
	users atomic.Int32
	// sent is whether the whole file was sent, and so is in the page cache.
	sent atomic.Bool
}

// reader returns a reader from offset on, or nil if the file is no longer open.
func (f *openFile) reader(offset int64) *sharedReader {
	for {
		users := f.users.Load()
		if users == 0 {
			return nil
		}
		if f.users.CompareAndSwap(users, users+1) {
			return f.newReader(offset)
		}
	}
}

// newReader returns a reader that the caller has counted as a user.
func (f *openFile) newReader(offset int64) *sharedReader {
	return &sharedReader{FileReader: bytestore.FileReader{File: f.file, Offset: offset}, shared: f}
}

func (f *openFile) release() error {
	if f.users.Add(-1) == 0 {
		return f.opened.Close()
	}
	return nil
}

// reader returns a reader from offset on and the file's validators, or nil if the file
// isn't open. The Kept may be nil.
func (k *Kept) reader(offset int64) (io.ReadCloser, *validators) {
	if k == nil {
		return nil, nil
	}
	if f := k.Load(); f != nil {
		if reader := f.reader(offset); reader != nil {
			return reader, f.validators
		}
	}
	return nil, nil
}

// keep keeps a whole file open, if it is local. It returns the reader that replaces the
// given one.
func (k *Kept) keep(s *Sender, reader io.ReadCloser, info bytestore.Info, v *validators, offset int64) io.ReadCloser {
	local, isLocal := reader.(bytestore.LocalFile)
	_, isGrowing := reader.(bytestore.GrowingFile)
	if !isLocal || isGrowing || !s.reserve() {
		return reader
	}
	file, _ := local.Local()
	f := &openFile{file: file, size: info.Size, validators: v, opened: reader, remote: !disk.IsLocal(file)}
	f.users.Store(2)
	if !k.CompareAndSwap(nil, f) {
		s.kept.Add(-1)
		return reader // another answer keeps its file open
	}
	time.AfterFunc(keepOpen, func() {
		k.Store(nil)
		s.kept.Add(-1)
		_ = f.release() // only read from
	})
	return f.newReader(offset)
}

// reserve counts one more file, and reports whether it may be kept open.
func (s *Sender) reserve() bool {
	if s.kept.Add(1) > s.mostKept {
		s.kept.Add(-1)
		return false
	}
	return true
}

// sharedReader is the [bytestore.LocalFile] of one answer in a shared open file.
type sharedReader struct {
	bytestore.FileReader
	shared *openFile
	closed bool
}

// Close implements [io.Closer].
func (r *sharedReader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	return r.shared.release()
}

// IsCached reports whether the file is in the page cache.
func (r *sharedReader) IsCached() bool { return r.shared.sent.Load() }

// WasSent records that length bytes from the reader's offset were sent.
func (r *sharedReader) WasSent(length int64) {
	if r.Offset == 0 && length == r.shared.size && length <= mostCached && !r.shared.remote {
		r.shared.sent.Store(true)
	}
}

// validators are the header fields that identify a version of a file.
type validators struct {
	// former is a previous entity tag of the same content; nil for none.
	etag, former, lastModified []byte
	modified                   time.Time
}
