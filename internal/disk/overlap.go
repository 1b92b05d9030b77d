package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// isIn reports whether a path is the directory or below it. The last parts of the path need
// not exist.
func isIn(name string, directory fs.FileInfo) (bool, error) {
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
			return false, fmt.Errorf("resolve %s: %w", name, Cause(err))
		}
		absolute = filepath.Dir(absolute)
	}
	for {
		info, err := os.Stat(absolute)
		if err != nil {
			return false, fmt.Errorf("resolve %s: %w", name, Cause(err))
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

// Overlap reports whether two paths are the same directory, or one is below the other. The
// last parts of both need not exist.
func Overlap(a, b string) (bool, error) {
	for _, pair := range [][2]string{{a, b}, {b, a}} {
		outer, err := os.Stat(pair[1])
		if errors.Is(err, fs.ErrNotExist) {
			continue // a missing directory contains nothing
		} else if err != nil {
			return false, fmt.Errorf("resolve %s: %w", pair[1], Cause(err))
		}
		if inside, err := isIn(pair[0], outer); inside || err != nil {
			return inside, err
		}
	}
	return false, nil
}
