package tiered

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nar-herder/internal/stamp"
)

// scanStep is how many entries of a folder are read at a time.
const scanStep = 1000

// removeUnfinished removes unfinished copies of an earlier process. The lock is held.
func (t *Tiered) removeUnfinished() error {
	return t.eachName(t.filling(), func(_ *os.File, name string) error {
		if !isTemporary(name) {
			return nil
		}
		if err := os.Remove(filepath.Join(t.filling(), name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
}

// isTemporary reports whether a name has the format of [rand.Text].
func isTemporary(name string) bool {
	return len(name) == 26 && strings.Trim(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567") == ""
}

// eachName calls do for each name in a folder.
func (t *Tiered) eachName(folder string, do func(handle *os.File, name string) error) error {
	handle, err := os.Open(folder)
	if err != nil {
		return err
	}
	defer handle.Close()
	for {
		names, err := handle.Readdirnames(scanStep)
		for _, name := range names {
			if t.ctx != nil && t.ctx.Err() != nil {
				return t.ctx.Err()
			}
			if err := do(handle, name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// found is an existing copy.
type found struct {
	*entry
	used time.Time
}

// scan finds the existing copies and makes the cache ready.
func (t *Tiered) scan() {
	defer close(t.scanned)
	begin := time.Now()
	copies := make(map[key]found)
	err := t.eachName(t.directory, func(_ *os.File, folder string) error {
		if len(folder) != 2 {
			return nil // an unreferenced file, lock or filling
		}
		if info, err := os.Lstat(filepath.Join(t.directory, folder)); err != nil || !info.IsDir() {
			return err
		}
		return t.eachName(filepath.Join(t.directory, folder), func(handle *os.File, name string) error {
			return t.scanFile(copies, handle, folder, name)
		})
	})
	if err != nil {
		if t.ctx.Err() == nil {
			t.log.Error("the cache can't be read: it is not used until the next start", "directory", t.directory, "error", err)
		}
		return
	}
	order := make([]found, 0, len(copies))
	for _, f := range copies {
		order = append(order, f)
	}
	slices.SortFunc(order, func(a, b found) int { return a.used.Compare(b.used) })
	t.mu.Lock()
	for _, f := range order {
		t.entries[f.key] = f.entry
		t.idle.addNewest(f.entry)
		t.taken += f.taken
	}
	taken := t.taken
	t.ready = t.ctx.Err() == nil
	t.mu.Unlock()
	t.makeRoom(0) // MaxSize may have been larger before
	t.log.Info("the cache is ready", "directory", t.directory, "copies", len(order), "bytes", taken, "duration", time.Since(begin).Round(time.Millisecond))
}

// scanFile adds a file to the copies.
func (t *Tiered) scanFile(copies map[key]found, handle *os.File, folder, name string) error {
	k, c, ok := parseFileName(name)
	if !ok || name[:2] != folder {
		return nil
	}
	var stat unix.Stat_t
	err := unix.Fstatat(int(handle.Fd()), name, &stat, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return &fs.PathError{Op: "fstatat", Path: filepath.Join(handle.Name(), name), Err: err}
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil
	}
	now := found{&entry{key: k, content: c, kept: true, checked: never, taken: blocksOf(&stat)}, stamp.Past(time.Unix(stat.Mtim.Unix()), t.began)}
	now.touched = t.seconds(now.used)
	if stat.Size != c.size {
		return os.Remove(t.path(now.entry))
	}
	// If a name has two contents, the older one was being removed.
	if other, ok := copies[k]; ok {
		older := other
		if now.used.Before(other.used) {
			older, now = now, other
		}
		if err := os.Remove(t.path(older.entry)); err != nil {
			return err
		}
	}
	copies[k] = now
	return nil
}
