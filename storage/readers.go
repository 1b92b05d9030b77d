package storage

import (
	"io"
	"sync"

	"nar-herder/narinfo"
	"nar-herder/storage/bytestore"
)

// readers counts the open readers of items that came from upstreams, whose files may be deleted
// at any time to make room. A file that is deleted while it is read frees nothing in a
// directory, and may cut the reader in a bucket.
type readers struct {
	mu   sync.Mutex
	open map[narinfo.PathHash]int
	// leaving has the items that [Storage.Unread] has returned.
	leaving map[narinfo.PathHash]struct{}
}

// enter counts a reader, unless the files of the item are about to be deleted.
func (r *readers) enter(hash narinfo.PathHash) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, leaves := r.leaving[hash]; leaves {
		return false
	}
	r.open[hash]++
	return true
}

func (r *readers) leave(hash narinfo.PathHash) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.open[hash]--; r.open[hash] == 0 {
		delete(r.open, hash)
	}
}

// Hold counts a reader of the item's files that did not open them with [Storage.OpenFile],
// until it is released. Another release does nothing.
func (s *Storage) Hold(hash narinfo.PathHash) (release func()) {
	s.readers.mu.Lock()
	s.readers.open[hash]++
	s.readers.mu.Unlock()
	return sync.OnceFunc(func() { s.readers.leave(hash) })
}

// Unread returns those of the items that nobody in this process reads. Until done is called,
// their files can't be opened: the error of [Storage.OpenFile] is [ErrNotStored]. All of them
// must have come from upstreams.
func (s *Storage) Unread(items []*Item) (unread []*Item, done func()) {
	r := &s.readers
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, item := range items {
		if _, leaves := r.leaving[item.Hash]; leaves || r.open[item.Hash] > 0 {
			continue
		}
		r.leaving[item.Hash] = struct{}{}
		unread = append(unread, item)
	}
	return unread, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, item := range unread {
			delete(r.leaving, item.Hash)
		}
	}
}

// counted makes the reader leave when it is closed. It stays a [bytestore.LocalFile] or
// [bytestore.GrowingFile].
func (r *readers) counted(reader io.ReadCloser, hash narinfo.PathHash) io.ReadCloser {
	closing := closer{reader, sync.OnceFunc(func() { r.leave(hash) })}
	switch reader := reader.(type) {
	case bytestore.GrowingFile:
		return &growingReader{reader, closing}
	case bytestore.LocalFile:
		return &localReader{reader, closing}
	}
	return &plainReader{reader, closing}
}

// closer closes a reader, and leaves.
type closer struct {
	reader io.Closer
	leave  func()
}

func (c closer) Close() error {
	defer c.leave()
	return c.reader.Close()
}

type (
	plainReader struct {
		io.Reader
		closer
	}
	localReader struct {
		bytestore.LocalFile
		closing closer
	}
	growingReader struct {
		bytestore.GrowingFile
		closing closer
	}
)

func (r *localReader) Close() error   { return r.closing.Close() }
func (r *growingReader) Close() error { return r.closing.Close() }
