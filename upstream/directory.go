package upstream

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path"
	"path/filepath"

	"golang.org/x/sys/unix"

	"nar-herder/internal/redact"
	"nar-herder/narinfo"
	"nar-herder/upstream/pipeline"
)

// directoryReads is how many files of a directory are read at once.
const directoryReads = 4

// directory is an upstream of files. Symbolic links in it are the administrator's, and may lead
// anywhere.
type directory string

// answer reads the file that a call asks for.
func (d directory) answer(call pipeline.Call) {
	response, err := d.read(path.Base(call.Request().URL.Path))
	call.Done(response, err)
}

func (d directory) read(name string) (*pipeline.Response, error) {
	// Opening a named pipe must not wait.
	file, err := os.OpenFile(filepath.Join(string(d), name), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if err := d.check(); err != nil {
			return nil, err
		}
		return &pipeline.Response{Status: http.StatusNotFound}, nil
	} else if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil {
		return nil, err
	} else if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a file", name)
	}
	text, err := io.ReadAll(io.LimitReader(file, narinfo.MaxSize+1))
	if err != nil {
		return nil, err
	}
	return &pipeline.Response{Status: http.StatusOK, Body: text}, nil
}

const (
	errNotThere = redact.Public("the directory can't be opened: is it mounted?")
	errEmpty    = redact.Public("the directory is empty: is it mounted?")
)

// check returns an error if the directory is missing or empty, as one that isn't mounted.
func (d directory) check() error {
	dir, err := os.Open(string(d))
	if err != nil {
		return fmt.Errorf("%w: %w", errNotThere, err)
	}
	defer dir.Close()
	if _, err := dir.Readdirnames(1); err == io.EOF {
		return errEmpty
	} else if err != nil {
		return err
	}
	return nil
}
