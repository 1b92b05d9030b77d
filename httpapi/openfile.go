package httpapi

import (
	"io"
	"os"
	"sync/atomic"
	"time"

	"nar-herder/storage"
)

const (
	// keepOpen is how long a file stays open for further answers: of small nars that
	// many ask for, opening and closing is a good part of the work. It also bounds for
	// how long a file is sent that was removed behind the server's back; a change of
	// the item is noticed by its row, see followInterval.
	keepOpen = 250 * time.Millisecond
	// mostOpen bounds the files that are kept open.
	mostOpen = 512
	// mostCached bounds the files that are taken to be in the page cache once they were
	// sent: of a larger one, parts may have been evicted.
	mostCached = 1 << 20
)

// keptFiles counts the files that a server keeps open.
type keptFiles struct{ count atomic.Int32 }

// keptFile is a file of an item that may be open. The zero value is one that isn't.
type keptFile struct{ atomic.Pointer[openFile] }

// openFile is an open file that answers share.
type openFile struct {
	*os.File
	info       storage.Info
	validators *validators
	opened     io.Closer
	// users are the answers, and the keptFile.
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
			return &sharedReader{openFile: f, offset: offset}
		}
	}
}

func (f *openFile) release() error {
	if f.users.Add(-1) == 0 {
		return f.opened.Close()
	}
	return nil
}

// open returns a reader of the file from offset on, which is kept open if the caller asks
// for all of its length bytes.
func (k *keptFile) open(files *keptFiles, offset, length int64, whole bool, open opener, describe func(storage.Info) *validators) (io.ReadCloser, *validators, error) {
	if f := k.Load(); f != nil {
		if reader := f.reader(offset); reader != nil {
			return reader, f.validators, nil
		}
	}
	reader, info, err := open(offset, length)
	if err != nil {
		return nil, nil, err
	}
	v := describe(info)
	local, isLocal := reader.(storage.LocalFile)
	_, isGrowing := reader.(storage.GrowingFile)
	if !whole || !isLocal || isGrowing || !files.reserve() {
		return reader, v, nil
	}
	file, _ := local.Local()
	f := &openFile{File: file, info: info, validators: v, opened: reader}
	f.users.Store(2)
	if !k.CompareAndSwap(nil, f) {
		files.count.Add(-1)
		f.users.Store(1) // another answer keeps its own
		return &sharedReader{openFile: f, offset: offset}, v, nil
	}
	time.AfterFunc(keepOpen, func() {
		k.Store(nil)
		files.count.Add(-1)
		_ = f.release() // it was only read from
	})
	return &sharedReader{openFile: f, offset: offset}, v, nil
}

// reserve reports whether one more file may be kept open, and counts it then.
func (o *keptFiles) reserve() bool {
	if o.count.Add(1) > mostOpen {
		o.count.Add(-1)
		return false
	}
	return true
}

// sharedReader is a [storage.LocalFile]: the place of one answer in an open file.
type sharedReader struct {
	*openFile
	offset int64
	closed bool
}

// Read implements [io.Reader].
func (r *sharedReader) Read(p []byte) (int, error) {
	n, err := r.ReadAt(p, r.offset)
	r.offset += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Local implements [storage.LocalFile].
func (r *sharedReader) Local() (*os.File, int64) { return r.File, r.offset }

// Close implements [io.Closer].
func (r *sharedReader) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	return r.release()
}

// isCached reports whether the file is in the page cache, so that sending it does not
// wait for a disk.
func (r *sharedReader) isCached() bool { return r != nil && r.sent.Load() }

// wasSent notes that length bytes from the place of the reader on were sent.
func (r *sharedReader) wasSent(length int64) {
	if r != nil && r.offset == 0 && length == r.info.Size && length <= mostCached {
		r.sent.Store(true)
	}
}

// validators are the header fields that tell one content from another.
type validators struct {
	// former is an entity tag that the content had before; nil for none.
	etag, former, lastModified []byte
	modified                   time.Time
}
