// Package readers counts who reads the files of items that may be deleted at any time, because
// they can be fetched again. A file that is deleted while it is read frees nothing in a directory,
// and in a bucket that may cut the reader.
package readers

import (
	"io"
	"sync"

	"nar-herder/narinfo"
	"nar-herder/storage/bytestore"
)

// Readers counts the readers in this process. Its methods are safe for concurrent use.
type Readers struct {
	mu   sync.Mutex
	open map[narinfo.PathHash]int
	// leaving has the items that Unread has returned.
	leaving map[narinfo.PathHash]struct{}
}

// New makes a Readers without any.
func New() *Readers {
	return &Readers{open: make(map[narinfo.PathHash]int), leaving: make(map[narinfo.PathHash]struct{})}
}

// Hold counts a reader of the item's files, until it is released. Another release does nothing.
func (r *Readers) Hold(hash narinfo.PathHash) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open[hash]++
	return r.release(hash)
}

// TryHold is Hold for a caller that opens a file next. It returns nil if the files of the item are
// about to be deleted.
func (r *Readers) TryHold(hash narinfo.PathHash) (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, leaves := r.leaving[hash]; leaves {
		return nil
	}
	r.open[hash]++
	return r.release(hash)
}

func (r *Readers) release(hash narinfo.PathHash) func() {
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.open[hash]--; r.open[hash] == 0 {
			delete(r.open, hash)
		}
	})
}

// Unread returns those of the items that nobody reads. Until done is called, TryHold refuses
// them.
func (r *Readers) Unread(hashes []narinfo.PathHash) (unread []narinfo.PathHash, done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, hash := range hashes {
		if _, leaves := r.leaving[hash]; leaves || r.open[hash] > 0 {
			continue
		}
		r.leaving[hash] = struct{}{}
		unread = append(unread, hash)
	}
	return unread, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, hash := range unread {
			delete(r.leaving, hash)
		}
	}
}

// Releasing returns a reader that calls release when it is closed. It stays a
// [bytestore.LocalFile] or [bytestore.GrowingFile].
func Releasing(reader io.ReadCloser, release func()) io.ReadCloser {
	closing := closer{reader, release}
	switch reader := reader.(type) {
	case bytestore.GrowingFile:
		return &growing{reader, closing}
	case bytestore.LocalFile:
		return &local{reader, closing}
	}
	return &plain{reader, closing}
}

type closer struct {
	reader  io.Closer
	release func()
}

func (c closer) Close() error {
	defer c.release()
	return c.reader.Close()
}

type plain struct {
	io.Reader
	closer
}

type local struct {
	bytestore.LocalFile
	closing closer
}

func (r *local) Close() error { return r.closing.Close() }

type growing struct {
	bytestore.GrowingFile
	closing closer
}

func (r *growing) Close() error { return r.closing.Close() }
