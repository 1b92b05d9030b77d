package decoders

import (
	"bytes"
	"io"
	"sync"

	"nar-herder/compression"
	"nar-herder/storage/bytestore"
)

// File is a [Compressed] file that is opened again where it must be read again.
type File struct {
	open func(offset, length int64) (io.ReadCloser, bytestore.Info, error)
	file io.ReadCloser // nil while none is open
	size int64         // -1 when it is not known
	// fresh is the file from its first byte on, until it is used.
	fresh io.Reader
	// local is the file where it is on this machine; nil where it has to be opened
	// again to be read again.
	local io.ReaderAt
}

// NewFile makes a file of what opens length bytes of it from offset on.
func NewFile(open func(offset, length int64) (io.ReadCloser, bytestore.Info, error)) *File {
	return &File{open: open}
}

// Head opens the file and returns its first bytes, [compression.HeadBytes] if it has
// as many.
func (f *File) Head() ([]byte, error) {
	if err := f.reopen(); err != nil {
		return nil, err
	}
	// One that is still being written can only be read by its own reader.
	if local, ok := f.file.(bytestore.LocalFile); ok && f.size >= 0 {
		if _, growing := f.file.(bytestore.GrowingFile); !growing {
			file, offset := local.Local()
			f.local = io.NewSectionReader(file, offset, f.size)
		}
	}
	head := make([]byte, compression.HeadBytes)
	n, err := io.ReadFull(f.fresh, head)
	head = head[:n]
	f.fresh = io.MultiReader(bytes.NewReader(head), f.fresh)
	if err == io.EOF || err == io.ErrUnexpectedEOF {
		err = nil // the decompressor says what is wrong with so little
	}
	return head, err
}

func (f *File) reopen() error {
	if f.file != nil {
		f.file.Close()
	}
	file, info, err := f.open(0, -1)
	if err != nil {
		f.file = nil
		return err
	}
	f.file, f.size, f.fresh = file, info.Size, file
	if f.size >= 0 {
		f.fresh = io.LimitReader(file, f.size) // a store's reader may give more
	}
	return nil
}

// Reader implements [Compressed].
func (f *File) Reader() (io.Reader, error) {
	if f.local != nil {
		return io.NewSectionReader(f.local, 0, f.size), nil
	}
	if f.fresh == nil {
		if err := f.reopen(); err != nil {
			return nil, err
		}
	}
	r := f.fresh
	f.fresh = nil
	return r, nil
}

// Suspend implements [Compressed]. A file that is being fetched stays open: to close it
// could cancel the fetch, which has to begin again then.
func (f *File) Suspend() io.Closer {
	if _, growing := f.file.(bytestore.GrowingFile); growing || f.local != nil || f.file == nil {
		return nil
	}
	file := f.file
	f.file, f.fresh = nil, nil
	return file
}

// Close implements [io.Closer].
func (f *File) Close() error {
	if f.file == nil {
		return nil
	}
	return f.file.Close()
}

// body is a body in memory. Close releases its piece of the budget.
type body struct {
	io.Reader
	release func()
}

// NewBody makes a body in memory of the budget. Its Close releases the piece.
func (d *Pool) NewBody(content []byte) io.ReadCloser {
	return body{bytes.NewReader(content), sync.OnceFunc(d.ReleasePiece)}
}

func (b body) Close() error { b.release(); return nil }
