package bootstrap

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// growing is a file that is being downloaded, as an [fs.FS] with this one file. A read waits
// until the bytes have arrived, so that an index is built while it is downloaded.
type growing struct {
	name string

	mu      sync.Mutex
	changed sync.Cond
	have    int64
	size    int64 // -1 until it is known
	ended   bool
	failure error
}

func newGrowing(name string) *growing {
	g := &growing{name: name, size: -1}
	g.changed.L = &g.mu
	return g
}

// grow sets how many bytes have arrived, and the size of the whole file, which exists by now.
func (g *growing) grow(have, size int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.have, g.size = have, size
	g.changed.Broadcast()
}

// end ends all waiting: the file is complete, or failure is the reason why it won't be.
func (g *growing) end(size int64, failure error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.ended, g.failure = true, failure; failure == nil {
		g.have, g.size = size, size
	}
	g.changed.Broadcast()
}

// wait waits until the size is known and the bytes before an offset have arrived, or all
// bytes have. It returns the size.
func (g *growing) wait(offset int64) (size int64, err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.ended && (g.size < 0 || g.have < min(offset, g.size)) {
		g.changed.Wait()
	}
	if g.failure != nil {
		return 0, fmt.Errorf("read %s: its download has ended: %w", g.name, g.failure)
	}
	return g.size, nil
}

// Open implements [fs.FS].
func (g *growing) Open(name string) (fs.File, error) {
	if name != growingFile {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	size, err := g.wait(0)
	if err != nil {
		return nil, err
	}
	file, err := os.Open(g.name)
	if err != nil {
		return nil, err
	}
	return &growingReader{File: file, of: g, size: size}, nil
}

// growingFile is the name of the file in the file system.
const growingFile = "index"

// growingReader is the open file. It is used by one goroutine at a time.
type growingReader struct {
	*os.File
	of     *growing
	size   int64
	offset int64
}

// Seek implements [io.Seeker] for offsets from the start.
func (r *growingReader) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekStart || offset < 0 {
		return 0, errors.ErrUnsupported
	}
	r.offset = offset
	return offset, nil
}

// Read implements [io.Reader].
func (r *growingReader) Read(p []byte) (int, error) {
	if _, err := r.of.wait(r.offset + int64(len(p))); err != nil {
		return 0, err
	}
	n, err := r.ReadAt(p, r.offset)
	r.offset += int64(n)
	return n, err
}

// Stat implements [fs.File]. The size is that of the complete file.
func (r *growingReader) Stat() (fs.FileInfo, error) {
	info, err := r.File.Stat()
	return wholeInfo{info, r.size}, err
}

// wholeInfo has the size of the complete file.
type wholeInfo struct {
	fs.FileInfo
	size int64
}

// Size implements [fs.FileInfo].
func (i wholeInfo) Size() int64 { return i.size }
