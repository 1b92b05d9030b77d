package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strings"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// sweepStep is how many names of the copy are checked together, which bounds the memory of
// a sweep.
const sweepStep = 500

// sweep finds files of the copy that are not selected: narinfos first, then the nars
// without a narinfo. It keeps files of which this is unknown.
func (r *run) sweep(ctx context.Context) error {
	if r.tree.root == nil {
		return nil
	}
	if err := r.sweepDirectory(ctx, ".", r.sweepNarinfos, nil); err != nil {
		return err
	}
	if r.Delete && r.summary.StaleNarinfos > 0 {
		// Otherwise a loss of power could restore a narinfo without its nars.
		if err := r.tree.sync(); err != nil {
			return err
		}
	}
	directories := []string{narDirectory}
	var emptied []string
	for n := 0; n < len(directories); n++ {
		before := r.summary.StaleNars
		err := r.sweepDirectory(ctx, directories[n], r.sweepNars, func(name string) { directories = append(directories, name) })
		if err != nil {
			return err
		}
		if r.summary.StaleNars > before {
			emptied = append(emptied, directories[n])
		}
	}
	if r.Delete && !r.DryRun {
		for _, name := range slices.Backward(emptied) {
			_ = r.tree.root.Remove(name) // fails if it is not empty
		}
		return r.tree.sync()
	}
	return nil
}

// sweepDirectory calls sweep with the regular files of a directory, in steps, and below
// with each directory in it, unless below is nil.
func (r *run) sweepDirectory(ctx context.Context, name string, sweep func(ctx context.Context, files []found) error, below func(string)) error {
	info, err := r.tree.stat(name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	}
	failed := func(err error) error {
		return fmt.Errorf("find stale files: list %s: %w", name, r.tree.explain(err))
	}
	if err != nil {
		return failed(err)
	}
	directory, err := r.tree.root.Open(name)
	if err != nil {
		return failed(err)
	}
	defer directory.Close()
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		entries, err := directory.ReadDir(sweepStep)
		files := make([]found, 0, len(entries))
		for _, entry := range entries {
			file := found{name: path.Join(name, entry.Name())}
			switch {
			case entry.IsDir() && below != nil:
				below(file.name)
			case entry.Type().IsRegular() && file.parse(below == nil):
				files = append(files, file)
			}
		}
		if len(files) > 0 {
			if err := sweep(ctx, files); err != nil {
				return fmt.Errorf("find stale files: %w", err)
			}
		}
		if r.Swept != nil {
			r.Swept(len(entries))
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return failed(err)
		}
	}
}

// found is a file of the copy that belongs to an item.
type found struct {
	name string
	hash narinfo.PathHash
}

// parse reports whether the file has the name of a narinfo, or of a nar with its hash, as
// Guix names them. Other files may not be from an export.
func (f *found) parse(isNarinfo bool) (ok bool) {
	base := path.Base(f.name)
	var err error
	if isNarinfo {
		hash, ok := strings.CutSuffix(base, narinfoSuffix)
		f.hash, err = narinfo.ParsePathHash(hash)
		return ok && err == nil
	}
	if decoded, err := url.PathUnescape(base); err == nil {
		base = decoded
	}
	f.hash, err = narinfo.ParsePathHash(base[:min(len(base), narinfo.PathHashLen)])
	return err == nil
}

// rows looks up the items of the files.
func (r *run) rows(ctx context.Context, files []found) ([]*index.Item, error) {
	hashes := make([]narinfo.PathHash, len(files))
	for i, file := range files {
		hashes[i] = file.hash
	}
	return r.Storage.Index().ItemsAt(ctx, hashes)
}

// exportable returns the names of an item's nars; nil for an item that is not exported.
// known is false if the item is damaged.
func (r *run) exportable(ctx context.Context, row *index.Item) (names [][]string, known bool, err error) {
	wanted, err := r.wants(ctx, row)
	if err != nil || !wanted {
		return nil, true, err
	}
	item, err := storage.NewItem(row)
	if err != nil {
		return nil, false, nil // it was reported
	}
	names, err = namesIn(item)
	if err != nil {
		names = nil
	}
	return names, true, nil
}

func (r *run) sweepNarinfos(ctx context.Context, files []found) error {
	r.narinfos += int64(len(files))
	rows, err := r.rows(ctx, files)
	if err != nil {
		return err
	}
	for i, file := range files {
		names, known, err := r.exportable(ctx, rows[i])
		if err != nil {
			return err
		}
		if !known || names != nil {
			continue
		}
		r.stale(file.name, &r.summary.StaleNarinfos)
	}
	return nil
}

func (r *run) sweepNars(ctx context.Context, files []found) error {
	r.nars += int64(len(files))
	rows, err := r.rows(ctx, files)
	if err != nil {
		return err
	}
	for i, file := range files {
		if rows[i] != nil && !rows[i].WithdrawnAt.IsZero() {
			// Clients may have its narinfo. Its row is deleted after the grace.
			continue
		}
		names, known, err := r.exportable(ctx, rows[i])
		if err != nil {
			return err
		}
		if !known || slices.ContainsFunc(names, func(names []string) bool { return slices.Contains(names, file.name) }) {
			continue
		}
		if r.Delete && !r.DryRun && r.isNamed(file) {
			continue
		}
		info, err := r.tree.stat(file.name)
		if r.stale(file.name, &r.summary.StaleNars) && err == nil {
			r.summary.StaleBytes += info.Size()
		}
	}
	return nil
}

// isNamed reports whether a narinfo of the copy names the file, for example an old one that
// could not be replaced or removed. An unreadable narinfo counts.
func (r *run) isNamed(file found) bool {
	text, err := r.tree.read(file.hash.String()+narinfoSuffix, narinfo.MaxSize)
	if errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err != nil {
		return true
	}
	n, err := narinfo.Parse(text)
	if err != nil {
		return true
	}
	return slices.ContainsFunc(n.Files, func(f narinfo.File) bool {
		decoded, err := f.Path()
		return err == nil && decoded == file.name || strings.TrimPrefix(f.URL, "/") == file.name
	})
}

// stale counts a stale file, and removes it with Delete. It returns false if that failed.
func (r *run) stale(name string, count *int64) bool {
	if r.Delete {
		if err := r.tree.remove(name); err != nil {
			r.done(Result{Outcome: Failed, Name: name, Err: fmt.Errorf("remove it: %w", r.tree.explain(err))})
			return false
		}
	}
	*count++
	return true
}
