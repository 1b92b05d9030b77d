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

// listStep is how many entries of a directory are read at a time, as it may have millions.
const listStep = 1000

// List implements [bytestore.Store]. It skips symbolic links, so that it lists no file
// twice and always ends.
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

// walk is a walk through all directories.
type walk struct {
	d     *Directory
	ctx   context.Context
	yield func(bytestore.Info, error) bool
	below []string // directories that are still unread
	ended bool
}

// more reports whether the walk continues.
func (w *walk) more() bool {
	if err := w.ctx.Err(); err != nil && !w.ended {
		w.ended = true
		w.yield(bytestore.Info{}, fmt.Errorf("list storage %s: %w", w.d.name, err))
	}
	return !w.ended
}

// failed yields an error. It ends the walk only if the storage itself is unreadable.
func (w *walk) failed(name string, err error) {
	switch {
	case name != "." && errors.Is(err, fs.ErrNotExist):
		// removed during the walk
	case name != ".":
		w.ended = !w.yield(bytestore.Info{Name: name}, fmt.Errorf("list %s in storage %s: %w", name, w.d.name, disk.Cause(err)))
	case errors.Is(err, fs.ErrNotExist):
		w.ended = true
		w.yield(bytestore.Info{}, fmt.Errorf("list storage %s: it was just removed or unmounted", w.d.name))
	default:
		w.ended = true
		w.yield(bytestore.Info{}, fmt.Errorf("list storage %s: %w", w.d.name, disk.Cause(err)))
	}
}

// directory visits the entries of a directory.
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

// entry visits an entry of a directory.
func (w *walk) entry(directory *os.File, name string, kind fs.FileMode) {
	switch {
	case !fs.ValidPath(name):
		// Not UTF-8: an unreferenced file.
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
			return // it was replaced
		}
		w.ended = !w.yield(infoOf(name, &stat), nil)
	}
}
