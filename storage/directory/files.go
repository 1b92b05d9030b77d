package directory

import (
	"io"
	"os"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sys/unix"
)

const (
	// maxOpenFiles bounds how many files stay open between readers.
	maxOpenFiles = 512
	// openFileAge bounds for how long the space of a file that another process
	// removed is kept, or an unmount refused. That it was removed or replaced is
	// known at once.
	openFileAge = 2 * time.Second
)

// openFiles keeps files open for a moment after they were read: of small nars
// that many ask for, opening and closing is a good part of the work.
type openFiles struct {
	mu      sync.Mutex
	files   *lru.LRU[string, *openFile]
	sweeper *time.Timer // nil while no file is kept
	closed  bool
}

// openFile is a file that several readers may share.
type openFile struct {
	*os.File
	device, inode uint64
	opened        time.Time

	// users are the readers, and openFiles while it keeps it. The mutex of
	// openFiles guards it.
	users int
}

func newOpenFiles() *openFiles {
	o := new(openFiles)
	var err error
	o.files, err = lru.NewLRU(maxOpenFiles, func(_ string, file *openFile) { o.release(file) })
	if err != nil {
		panic(err) // only of a size that is not positive
	}
	return o
}

// release is called with the mutex held.
func (o *openFiles) release(file *openFile) {
	if file.users--; file.users == 0 {
		_ = file.Close() // it was only read from
	}
}

// get returns a reader of the file that is kept under the name, which is below the
// directory of the descriptor, and describes it; nil when there is none that is
// still the one of that name. Its count of links would not tell: a copy that was
// exported has a link of its own.
func (o *openFiles) get(directory int, name string) (*reader, *unix.Stat_t) {
	o.mu.Lock()
	defer o.mu.Unlock()
	file, ok := o.files.Get(name)
	if !ok {
		return nil, nil
	}
	if time.Since(file.opened) < openFileAge {
		now := new(unix.Stat_t)
		// Wherever links lead: only the same file counts.
		if err := unix.Fstatat(directory, name, now, 0); err == nil && now.Dev == file.device && now.Ino == file.inode {
			file.users++
			return &reader{files: o, file: file}, now
		}
	}
	o.files.Remove(name)
	return nil, nil
}

// add returns a reader of a file that was just opened by its name, and keeps it.
func (o *openFiles) add(name string, opened *os.File, stat *unix.Stat_t) *reader {
	file := &openFile{File: opened, device: stat.Dev, inode: stat.Ino, opened: time.Now(), users: 1}
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.closed {
		o.files.Remove(name)
		file.users++
		o.files.Add(name, file)
		if o.sweeper == nil {
			o.sweeper = time.AfterFunc(openFileAge, o.sweep)
		}
	}
	return &reader{files: o, file: file}
}

// forget lets go of what is kept under the name.
func (o *openFiles) forget(name string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.files.Remove(name)
}

// sweep lets go of what was kept for long enough.
func (o *openFiles) sweep() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, name := range o.files.Keys() {
		if file, _ := o.files.Peek(name); time.Since(file.opened) >= openFileAge {
			o.files.Remove(name)
		}
	}
	if o.files.Len() > 0 {
		o.sweeper.Reset(openFileAge / 2)
	} else {
		o.sweeper = nil
	}
}

// close lets go of all files, and keeps none from then on.
func (o *openFiles) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	if o.sweeper != nil {
		o.sweeper.Stop()
	}
	o.files.Purge()
}

// reader is a [storage.LocalFile]: one reader's place in a file.
type reader struct {
	files  *openFiles
	file   *openFile
	offset int64
	closed sync.Once
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.file.ReadAt(p, r.offset)
	r.offset += int64(n)
	if n > 0 && err == io.EOF {
		err = nil
	}
	return n, err
}

// Local implements [storage.LocalFile].
func (r *reader) Local() (*os.File, int64) { return r.file.File, r.offset }

func (r *reader) Close() error {
	r.closed.Do(func() {
		r.files.mu.Lock()
		defer r.files.mu.Unlock()
		r.files.release(r.file)
	})
	return nil
}
