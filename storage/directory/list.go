package directory

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/storage/bytestore"
)

// listStep is how many entries of a directory are read at a time. One with
// millions of nars is never in memory as a whole.
const listStep = 1000

// List implements [bytestore.Store]. Symbolic links are passed over, so that
// nothing is counted twice and no walk is without end.
func (d *Directory) List(ctx context.Context) iter.Seq2[bytestore.Info, error] {
	return func(yield func(bytestore.Info, error) bool) {
		if err := d.inPlace(); err != nil {
			yield(bytestore.Info{}, fmt.Errorf("list: %w", err))
			return
		}
		w := &walk{d: d, ctx: ctx, yield: yield, below: []string{"."}}
		for len(w.below) > 0 && w.more() {
			name := w.below[len(w.below)-1]
			w.below = w.below[:len(w.below)-1]
			w.directory(name)
		}
	}
}

// walk is a way through all directories.
type walk struct {
	d     *Directory
	ctx   context.Context
	yield func(bytestore.Info, error) bool
	below []string // directories that are still to be read
	ended bool
}

// more says whether the walk goes on.
func (w *walk) more() bool {
	if err := w.ctx.Err(); err != nil && !w.ended {
		w.ended = true
		w.yield(bytestore.Info{}, fmt.Errorf("list storage %s: %w", w.d.name, err))
	}
	return !w.ended
}

// failed tells of what can't be read; the rest may well be readable, unless it is
// the storage itself.
func (w *walk) failed(name string, err error) {
	switch {
	case name != "." && errors.Is(err, fs.ErrNotExist):
		// removed meanwhile
	case name != ".":
		w.ended = !w.yield(bytestore.Info{Name: name}, fmt.Errorf("list %s in storage %s: %w", name, w.d.name, disk.Cause(err)))
	case errors.Is(err, fs.ErrNotExist):
		w.ended = true
		w.yield(bytestore.Info{}, fmt.Errorf("list storage %s: it went away meanwhile", w.d.name))
	default:
		w.ended = true
		w.yield(bytestore.Info{}, fmt.Errorf("list storage %s: %w", w.d.name, disk.Cause(err)))
	}
}

// directory goes through the entries of one directory.
func (w *walk) directory(name string) {
	handle, err := w.d.root.Open(name)
	if err != nil {
		w.failed(name, err)
		return
	}
	defer handle.Close()
	for w.more() {
		entries, err := handle.ReadDir(listStep)
		for _, entry := range entries {
			if w.entry(handle, path.Join(name, entry.Name()), entry.Type()); w.ended {
				return
			}
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			w.failed(name, err)
			return
		}
	}
}

// entry is one of a directory.
func (w *walk) entry(directory *os.File, name string, kind fs.FileMode) {
	switch {
	case !fs.ValidPath(name):
		// Not UTF-8: a stranger's, which is no name for a nar.
	case kind.IsDir():
		w.below = append(w.below, name)
	case kind.IsRegular():
		var stat unix.Stat_t
		err := unix.Fstatat(int(directory.Fd()), path.Base(name), &stat, unix.AT_SYMLINK_NOFOLLOW)
		for err == unix.EINTR {
			err = unix.Fstatat(int(directory.Fd()), path.Base(name), &stat, unix.AT_SYMLINK_NOFOLLOW)
		}
		if err != nil {
			w.failed(name, err)
			return
		}
		if stat.Mode&unix.S_IFMT != unix.S_IFREG {
			return // another has taken its place
		}
		w.ended = !w.yield(infoOf(name, &stat), nil)
	}
}
