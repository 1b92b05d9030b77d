package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// LiesIn says whether a name, of which the last parts need not exist, is the
// directory or lies below it.
func LiesIn(name string, directory fs.FileInfo) (bool, error) {
	absolute, err := filepath.Abs(name)
	if err != nil {
		return false, fmt.Errorf("find the absolute path of %s: %w", name, err)
	}
	for {
		resolved, err := filepath.EvalSymlinks(absolute)
		if err == nil {
			absolute = resolved
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return false, fmt.Errorf("find where %s lies: %w", name, Cause(err))
		}
		absolute = filepath.Dir(absolute)
	}
	for {
		info, err := os.Stat(absolute)
		if err != nil {
			return false, fmt.Errorf("find where %s lies: %w", name, Cause(err))
		}
		if os.SameFile(info, directory) {
			return true, nil
		}
		if absolute == filepath.Dir(absolute) {
			return false, nil
		}
		absolute = filepath.Dir(absolute)
	}
}
