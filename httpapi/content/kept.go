package content

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"nar-herder/httpapi/engine"
	"nar-herder/internal/disk"
	"nar-herder/storage/bytestore"
)

const (
	// keepOpen is how long a file stays open for further answers: of small nars that
	// many ask for, opening and closing is a good part of the work. It also bounds for
	// how long a file is sent that was removed behind the server's back; a change of
	// the item is noticed by its row, see followInterval.
	keepOpen = 250 * time.Millisecond
	// mostOpen bounds the files that are kept open, where there are file descriptors enough.
	mostOpen = 512
	// mostCached bounds the files that are taken to be in the page cache once they were
	// sent: of a larger one, parts may have been evicted.
	mostCached = 1 << 20
)

// Sender answers with files. It is made by [NewSender].
type Sender struct {
	kept     atomic.Int32 // files that are open without a request
	mostKept int32
}

// NewSender makes a sender.
func NewSender() *Sender { return &Sender{mostKept: mostKept(engine.Descriptors())} }

// Kept returns how many files are kept open.
func (s *Sender) Kept() int { return int(s.kept.Load()) }

// mostKept is how many files are kept open at most in a process with so many descriptors.
func mostKept(descriptors int) int32 { return int32(min(mostOpen, descriptors/8)) }

// Kept is a file of an item that may be open. The zero value is one that isn't.
type Kept struct{ atomic.Pointer[openFile] }

// openFile is an open file that answers share.
type openFile struct {
	file       *os.File
	size       int64
	validators *validators
	opened     io.Closer
	// remote is whether the file system may ask another machine for each read.
	remote bool
	// users are the answers, and the Kept.
	users atomic.Int32
	// sent is whether all of it was sent: it is in the page cache then.
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

// newReader returns a reader that is counted as a user already.
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

// keep keeps a file open that was just opened as a whole, if it is on this machine. It
// returns the reader to use in the place of the given one.
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
		return reader // another answer keeps its own
	}
	time.AfterFunc(keepOpen, func() {
		k.Store(nil)
		s.kept.Add(-1)
		_ = f.release() // it was only read from
	})
	return f.newReader(offset)
}

// reserve reports whether one more file may be kept open, and counts it then.
func (s *Sender) reserve() bool {
	if s.kept.Add(1) > s.mostKept {
		s.kept.Add(-1)
		return false
	}
	return true
}

// sharedReader is a [bytestore.LocalFile]: the place of one answer in an open file.
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

// IsCached reports whether the file is in the page cache, so that sending it does not
// wait for a disk.
func (r *sharedReader) IsCached() bool { return r.shared.sent.Load() }

// WasSent notes that length bytes from the place of the reader on were sent.
func (r *sharedReader) WasSent(length int64) {
	if r.Offset == 0 && length == r.shared.size && length <= mostCached && !r.shared.remote {
		r.shared.sent.Store(true)
	}
}

// validators are the header fields that tell one content from another.
type validators struct {
	// former is an entity tag that the content had before; nil for none.
	etag, former, lastModified []byte
	modified                   time.Time
}
