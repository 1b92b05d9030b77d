package export

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"nar-herder/internal/disk"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/bytestore"
	"nar-herder/storage/index"
)

const (
	narinfoSuffix = ".narinfo"

	// maxTries is how often an item is tried that changes during its export.
	maxTries = 3

	// maxNameLen is the maximum length of a file name in bytes on most file systems.
	maxNameLen = 255
)

// item exports one item. It returns only errors that end the export.
func (r *run) item(ctx context.Context, row *index.Item, tries int) error {
	if !row.WithdrawnAt.IsZero() {
		r.summary.Withdrawn++
		if r.closure != nil {
			r.done(Result{Outcome: Skipped, Name: row.Hash.String(), Err: errors.New("it was withdrawn, but the closure needs it")})
		}
		return nil
	}
	item, err := storage.NewItem(row)
	if err != nil {
		r.done(Result{Outcome: Failed, Name: row.Hash.String(), Err: err})
		return nil
	}
	if r.closure != nil {
		r.closureLacks(item)
	}
	name := item.Narinfo.StorePath.String()
	names, err := namesIn(item)
	if err != nil {
		r.done(Result{Outcome: Skipped, Name: name, Err: err})
		return nil
	}
	if err = r.export(ctx, item, names); err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if isFatal(err) {
		return fmt.Errorf("%s: %w", name, err)
	}
	// The item may have been changed or removed during its export.
	now, lookErr := r.Storage.Index().Item(ctx, row.Hash)
	switch {
	case errors.Is(lookErr, index.ErrNotFound):
		return nil
	case lookErr != nil:
		return lookErr
	case tries > 1 && hasChanged(row, now):
		return r.item(ctx, now, tries-1)
	}
	r.done(Result{Outcome: Failed, Name: name, Err: err})
	return nil
}

func hasChanged(old, now *index.Item) bool {
	return now.Position() != old.Position() || now.Stored != old.Stored || now.Dropped != old.Dropped || !now.WithdrawnAt.Equal(old.WithdrawnAt) || !bytes.Equal(now.Text, old.Text)
}

// namesIn returns the names of each file of the item in the copy, none for dropped files, or an
// error if the item can't be exported.
//
// A file server decodes the percent escapes of a request, and looks for the decoded name.
// For a file:// URL, Guix's client opens the path of the narinfo without decoding it
// (open-file of uri-path instead of http-fetch). If the two differ, a file has both names.
func namesIn(item *storage.Item) ([][]string, error) {
	names := make([][]string, len(item.Narinfo.Files))
	for n, file := range item.Narinfo.Files {
		name := item.FileName(n)
		if !item.HasStored(n) && item.HasDropped(n) {
			continue // the other files are enough
		}
		if !item.HasStored(n) {
			return nil, fmt.Errorf("%s: %w", file.URL, storage.ErrNotStored)
		}
		if !strings.HasPrefix(name, narDirectory+"/") {
			return nil, fmt.Errorf("URL %q does not begin with %s/, the directory of a copy's nars", file.URL, narDirectory)
		}
		names[n] = []string{name}
		written := strings.TrimPrefix(file.URL, "/")
		if written != name && strings.HasPrefix(written, narDirectory+"/") && isShort(written) {
			names[n] = append(names[n], written)
		}
	}
	return names, nil
}

// isShort reports whether each part of a path is short enough for a file name.
func isShort(name string) bool {
	for part := range strings.SplitSeq(name, "/") {
		if len(part) > maxNameLen {
			return false
		}
	}
	return true
}

// stagedNar is a complete nar with a temporary name.
type stagedNar struct{ temporary, name string }

// export adds the missing nars of an item to the copy, and adds the item to pending if its
// narinfo must be written.
func (r *run) export(ctx context.Context, item *storage.Item, names [][]string) (err error) {
	file := item.Hash.String() + narinfoSuffix
	result := Result{Name: item.Narinfo.StorePath.String()}
	info, err := r.tree.stat(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return r.tree.explain(err)
	}
	there := err == nil
	var text []byte
	if there {
		text, _ = r.tree.read(file, narinfo.MaxSize) // an unreadable file is replaced
	}
	same := text != nil && bytes.Equal(text, item.Announced())
	// A different nar may have the same size and time.
	renew := !same && describesOther(text, item)

	var staged []stagedNar
	defer func() {
		if err != nil {
			for _, nar := range staged {
				_ = r.tree.remove(nar.temporary) // close removes it otherwise
			}
		}
	}()
	for n := range names {
		if names[n] == nil {
			continue
		}
		if err := r.stage(ctx, item, n, names[n], renew, &staged, &result); err != nil {
			return err
		}
	}
	if renew && len(staged) > 0 {
		// The old narinfo doesn't describe the new nars.
		err := r.tree.remove(file)
		if err == nil {
			err = r.tree.sync()
		}
		if err != nil {
			return fmt.Errorf("remove %s: %w", file, r.tree.explain(err))
		}
	}
	for _, nar := range staged {
		if err := r.tree.rename(nar.temporary, nar.name); err != nil {
			return fmt.Errorf("write %s: %w", nar.name, r.tree.explain(err))
		}
	}
	if same && !sameTime(info.ModTime(), item.AddedAt) {
		// Only its owner may do that: replace a file of another user.
		err := r.tree.setTime(file, item.AddedAt)
		if same = !errors.Is(err, fs.ErrPermission); same && err != nil {
			return fmt.Errorf("set the time of %s: %w", file, r.tree.explain(err))
		}
	}
	if same {
		if len(staged) > 0 {
			result.Outcome = Updated
		}
		r.done(result)
		return nil
	}
	temporary, err := r.tree.write(item.Announced())
	if err == nil {
		err = r.tree.setTime(temporary, item.AddedAt)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", file, r.tree.explain(err))
	}
	result.Outcome = Added
	if there {
		result.Outcome = Updated
	}
	r.pending = append(r.pending, pending{temporary, file, result})
	return nil
}

// describesOther reports whether a text is a narinfo with another NarHash than the item's.
func describesOther(text []byte, item *storage.Item) bool {
	n, err := narinfo.Parse(text)
	return err == nil && n.NarHash != item.Narinfo.NarHash
}

// stage adds the item's Nth file to the copy under a temporary name for each of the names
// that don't have it yet.
func (r *run) stage(ctx context.Context, item *storage.Item, n int, names []string, renew bool, staged *[]stagedNar, result *Result) error {
	reader, info, err := r.Storage.OpenFile(ctx, item, n, 0, -1)
	if err != nil {
		return err
	}
	defer reader.Close()
	source := source{Reader: reader, ctx: ctx, info: info}
	if local, ok := reader.(bytestore.LocalFile); ok {
		source.file, _ = local.Local()
		if source.stat, err = source.file.Stat(); err != nil {
			return fmt.Errorf("stat %s: %w", info.Name, disk.Cause(err))
		}
	}
	first := names[0] // the other names are links to it
	for i, name := range names {
		there, err := r.tree.stat(name)
		if err == nil && r.isSame(there, source, renew) {
			continue
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("look for %s: %w", name, r.tree.explain(err))
		}
		var temporary string
		if i == 0 {
			result.Bytes += info.Size
		} else if !r.DryRun {
			temporary, err = r.tree.linkWithin(first)
		}
		if i == 0 || err != nil {
			if temporary, err = r.bring(source); err != nil {
				return fmt.Errorf("add %s: %w", name, r.tree.explain(err))
			}
		}
		*staged = append(*staged, stagedNar{temporary, name})
		if i == 0 && !r.DryRun {
			first = temporary
		}
	}
	return nil
}

// source is a nar of the storage.
type source struct {
	io.Reader
	ctx  context.Context
	info bytestore.Info
	file *os.File    // nil if it is not a local file
	stat fs.FileInfo // of file
}

// Read implements [io.Reader] until the context ends.
func (s source) Read(p []byte) (int, error) {
	if err := s.ctx.Err(); err != nil {
		return 0, err
	}
	return s.Reader.Read(p)
}

// isSame reports whether a file of the copy is the nar of the storage. If renew is set, the
// same size and time are not enough.
func (r *run) isSame(there fs.FileInfo, from source, renew bool) bool {
	if from.stat != nil && os.SameFile(there, from.stat) {
		return !r.Copy
	}
	return !renew && there.Mode().IsRegular() && there.Size() == from.info.Size && sameTime(there.ModTime(), from.info.ModTime)
}

// bring adds a hard link or a copy of a nar.
func (r *run) bring(from source) (temporary string, err error) {
	s := r.summary
	if r.DryRun {
		s.Linked, s.LinkedBytes = s.Linked+1, s.LinkedBytes+from.info.Size
		return "", nil
	}
	if from.file != nil && !r.Copy && !r.noLinks {
		temporary, err = r.tree.linkOpen(from.file)
		if err == nil {
			s.Linked, s.LinkedBytes = s.Linked+1, s.LinkedBytes+from.info.Size
			return temporary, nil
		}
		if isFatal(err) {
			return "", err
		}
		// For other errors, such as another user's file or too many links, the next
		// file may succeed.
		r.noLinks = errors.Is(err, syscall.EXDEV) || errors.Is(err, syscall.EOPNOTSUPP)
	}
	temporary, err = r.tree.copy(from, from.info.Size, from.info.ModTime)
	if err == nil {
		s.Copied, s.CopiedBytes = s.Copied+1, s.CopiedBytes+from.info.Size
	}
	return temporary, err
}

// granularities are the precisions of times in file systems.
var granularities = []time.Duration{1, 100, time.Microsecond, time.Second, 2 * time.Second}

// sameTime reports whether kept is the given time, rounded by a file system.
func sameTime(kept, given time.Time) bool {
	for _, granularity := range granularities {
		if kept.Equal(given.Truncate(granularity)) {
			return true
		}
	}
	return false
}
