package decoders

import (
	"bytes"
	"io"
	"sync"

	"nar-herder/compression"
	"nar-herder/storage/bytestore"
)

// File is a [Compressed] file. It opens the file again to read it again if necessary.
type File struct {
	open func(offset, length int64) (io.ReadCloser, bytestore.Info, error)
	file io.ReadCloser // nil while none is open
	size int64         // -1 if unknown
	// fresh reads the file from its first byte; nil once used.
	fresh io.Reader
	// local is the file if it is local, and can be read again without opening it again.
	local io.ReaderAt
}

// NewFile makes a file with a function that opens length bytes of it from offset on.
func NewFile(open func(offset, length int64) (io.ReadCloser, bytestore.Info, error)) *File {
	return &File{open: open}
}

// Head opens the file and returns its first [compression.HeadBytes] bytes, or the whole file
// if it is shorter.
func (f *File) Head() ([]byte, error) {
	if err := f.reopen(); err != nil {
		return nil, err
	}
	// A growing file must be read through its own reader.
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
		err = nil // the decompressor returns a better error
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
		f.fresh = io.LimitReader(file, f.size) // a store's reader may have more
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

// Suspend implements [Compressed]. A growing file stays open, as closing it could cancel its
// download.
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

// body is a body in memory. Close releases its piece.
type body struct {
	io.Reader
	release func()
}

// NewBody makes a body in memory, for which the caller has reserved a piece. Its Close releases
// the piece.
func (d *Pool) NewBody(content []byte) io.ReadCloser {
	return body{bytes.NewReader(content), sync.OnceFunc(d.ReleasePiece)}
}

func (b body) Close() error { b.release(); return nil }
