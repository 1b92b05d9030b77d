package dump

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"nar-herder/internal/disk"
	"nar-herder/mirror/original"
	"nar-herder/storage/index"
)

// The names in the directory of the dump FILE:
//
//	FILE, FILE.zst, FILE.index   the newest of each, for operators and web servers:
//	                             second names of files of the newest generation (plain names)
//	FILE.dump-CHANGE-TIME…       files of a generation, which keep their names
//	FILE.json                    the manifest: which generations there are
//	FILE.lock                    locked while a process makes a dump
//	FILE.tmp-…                   being written, or left by a killed process
const (
	generationInfix = ".dump-"
	temporaryInfix  = ".tmp-"
	lockSuffix      = ".lock"
)

// The suffixes of a generation's files.
const (
	databaseSuffix = ""
	zstdSuffix     = ".zst"
	indexSuffix    = ".index"
)

var generationRest = regexp.MustCompile(`^[0-9]+-[0-9]+(|\.zst|\.index)$`)

// ErrBusy reports that another process makes a dump at the same path.
var ErrBusy = errors.New("another process is making the dump")

// lock keeps other processes from making a dump at the path until unlock is called or this
// process ends.
func lock(path string) (unlock func() error, err error) {
	// Read-only, because another user may own it.
	file, err := disk.OpenFile(path+lockSuffix, os.O_RDONLY, 0o664, disk.GroupWrites)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		file.Close()
		if err == unix.EWOULDBLOCK {
			return nil, fmt.Errorf("%w: %s is locked: wait for it to end", ErrBusy, path+lockSuffix)
		}
		return nil, fmt.Errorf("lock %s: %w", path+lockSuffix, err)
	}
	return file.Close, nil
}

// tidy removes the files that the manifest doesn't name, such as those of a killed process, and
// gives the plain names to the newest dump.
// The caller has the lock.
func tidy(path string, m manifest) error {
	base, dir := filepath.Base(path), filepath.Dir(path)
	named := make(map[string]bool)
	for _, g := range m.Generations {
		for _, file := range g.files() {
			named[file.Name] = true
		}
	}
	entries, err := os.ReadDir(dir)
	for _, entry := range entries {
		rest, hasBase := strings.CutPrefix(entry.Name(), base)
		if !hasBase {
			continue
		}
		generation, isGeneration := strings.CutPrefix(rest, generationInfix)
		if strings.HasPrefix(rest, temporaryInfix) || isGeneration && generationRest.MatchString(generation) && !named[entry.Name()] {
			if removeErr := os.Remove(filepath.Join(dir, entry.Name())); !errors.Is(removeErr, fs.ErrNotExist) {
				err = errors.Join(err, removeErr)
			}
		}
	}
	if err == nil && len(m.Generations) > 0 {
		err = linkPlain(path, m.Generations[0])
	}
	if err != nil {
		return fmt.Errorf("clean up beside the dump: %w", err)
	}
	return nil
}

// linkPlain gives the plain names to the files of the newest generation.
func linkPlain(path string, g Generation) error {
	temporary := path + temporaryInfix + "link"
	changed := false
	for suffix, file := range map[string]File{databaseSuffix: g.Database, zstdSuffix: g.Zstd, indexSuffix: g.Index} {
		source := filepath.Join(filepath.Dir(path), file.Name)
		now, err := os.Stat(source)
		if err != nil {
			return err
		}
		if plain, err := os.Stat(path + suffix); err == nil && os.SameFile(plain, now) {
			continue
		}
		if err := os.Link(source, temporary); err != nil {
			// On a file system without hard links.
			if err := os.Symlink(file.Name, temporary); err != nil {
				return err
			}
		}
		if err := os.Rename(temporary, path+suffix); err != nil {
			return err
		}
		changed = true
	}
	if changed {
		return disk.SyncDirectory(path)
	}
	return nil
}

// CheckPath refuses a path where a file would be overwritten that is not a dump.
func CheckPath(ctx context.Context, path, database string) error {
	plain, err := os.Stat(path)
	if err != nil {
		return nil // it doesn't exist, or making a dump fails
	}
	if live, err := os.Stat(database); err == nil && os.SameFile(live, plain) {
		return fmt.Errorf("%s is the database itself: name another file with --database-dump", path)
	}
	const refusal = "%s is not a dump: name another file with --database-dump"
	if !plain.Mode().IsRegular() {
		return fmt.Errorf(refusal, path)
	}
	if _, err := os.Lstat(path + "-wal"); err == nil {
		return fmt.Errorf("%s is a database in use, because %s-wal exists: name another file with --database-dump", path, path)
	}
	if plain.Size() == 0 {
		return nil
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	head := make([]byte, 72)
	if _, err := io.ReadFull(file, head); err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read %s: %w", path, err)
	}
	// A dump is a database without this program's application id, which would be at byte
	// 68; see https://www.sqlite.org/fileformat.html.
	if !bytes.HasPrefix(head, []byte("SQLite format 3\x00")) || binary.BigEndian.Uint32(head[68:]) == index.ApplicationID {
		return fmt.Errorf(refusal, path)
	}
	// Other programs have databases as well. A damaged dump may be replaced.
	if err := original.Look(ctx, path); errors.Is(err, original.ErrNotOriginal) {
		return fmt.Errorf(refusal, path)
	}
	return ctx.Err()
}
