package narinfofiles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"nar-herder/narinfo"
	"nar-herder/storage"
)

// buffers are for reading narinfos, since their size is not known before.
var buffers = sync.Pool{New: func() any { return bytes.NewBuffer(make([]byte, 0, 16<<10)) }}

// Read reads and parses the narinfo, and refuses what an import refuses. A symbolic link that
// leads out of the directory is not followed, because errors may quote the file.
func (f File) Read() (*narinfo.Narinfo, error) {
	root, err := os.OpenRoot(f.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	name, err := filepath.Rel(f.root, f.Name)
	if err != nil {
		return nil, err
	}
	// Without O_NONBLOCK, opening a pipe would block for ever.
	file, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		if info, linkErr := root.Lstat(name); linkErr == nil && info.Mode()&fs.ModeSymlink != 0 {
			err = fmt.Errorf("it is a symbolic link that can't be followed within %s: name the file itself, or copy it in: %w", f.root, err)
		}
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	buffer := buffers.Get().(*bytes.Buffer)
	defer buffers.Put(buffer)
	buffer.Reset()
	if _, err := buffer.ReadFrom(io.LimitReader(file, narinfo.MaxSize+1)); err != nil {
		return nil, err
	}
	n, err := storage.Admit(bytes.Clone(buffer.Bytes()))
	if err != nil {
		return nil, err
	}
	// Clients request HASH.narinfo, so the name must match the item. 'guix publish' names its
	// files HASH-NAME.narinfo.
	stem, ok := strings.CutSuffix(filepath.Base(name), ".narinfo")
	stem, _, _ = strings.Cut(stem, "-")
	if hash, err := narinfo.ParsePathHash(stem); ok && err == nil && hash != n.StorePath.Hash {
		return nil, fmt.Errorf("it is named after %s, but describes %s", hash, n.StorePath)
	}
	return n, nil
}
