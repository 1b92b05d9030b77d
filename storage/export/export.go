// Package export makes a static copy of a storage: a directory with HASH.narinfo, nar/…
// and nix-cache-info, for any file server, for rsync, or for a file:// URL of Guix's client.
//
// It updates the copy in place. At any time, even after a crash, each narinfo in the copy
// has its nars: they are added before the narinfo, and removed after it.
package export

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"

	"nar-herder/internal/disk"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
)

// Export is an export of a storage.
type Export struct {
	Storage *storage.Storage
	// StorageDirectory is the directory of the storage, which must not overlap with
	// the copy; "" for a bucket.
	StorageDirectory string

	// Tags selects items that have all of these tags.
	Tags []index.Tag
	// ClosureOf selects items and all that they refer to; nil for all items.
	ClosureOf []narinfo.PathHash

	// Delete removes narinfos and nars from the copy that are not selected.
	Delete bool
	// AcceptLoss allows Delete to remove more than a tenth of the copy, or all of it.
	AcceptLoss bool
	// Adopt allows a directory with files that no export has made.
	Adopt bool
	// DryRun changes nothing and reports what would be done.
	DryRun bool
	// Copy never makes hard links to files of the storage.
	Copy bool

	// Report is called for each item, and each failed removal; it may be nil.
	Report func(Result)
	// Swept is called during the sweep with the number of further files that were
	// checked; it may be nil.
	Swept func(files int)

	// fault is called before each change of the copy, in tests.
	fault func(step string) error
}

// Result is the outcome for an item, or for a file of the copy.
type Result struct {
	Outcome Outcome
	// Name is the store path or the hash of an item, or the name of a file of
	// the copy.
	Name string
	// Bytes is the size of the nars that were added to the copy.
	Bytes int64
	// Err is why it was skipped or has failed.
	Err error
}

// Outcome is the outcome of the export of an item.
type Outcome int

const (
	// Unchanged: the copy had it already.
	Unchanged Outcome = iota
	// Added: its narinfo is new in the copy.
	Added
	// Updated: its narinfo has changed, or one of its nars was added or replaced.
	Updated
	// Skipped: it can't be exported, for example because one of its nars isn't stored.
	Skipped
	// Failed: its export failed. Its files in the copy are kept.
	Failed
)

// Summary counts the outcomes of an export.
type Summary struct {
	Unchanged, Added, Updated, Skipped, Failed int64
	// Withdrawn counts withdrawn items, which are not exported.
	Withdrawn int64
	// Linked and Copied count the nars that were added to the copy by hard links and by
	// copying.
	Linked, LinkedBytes, Copied, CopiedBytes int64
	// StaleNarinfos and StaleNars count files of the copy that are not selected. Delete
	// removes them. StaleBytes is the size of those nars; hard links among them use no
	// space.
	StaleNarinfos, StaleNars, StaleBytes int64
}

// batchSize is how many items are flushed together. Each flush is of the whole file system,
// and other processes wait for it, too.
const batchSize = 500

// To updates the copy in the directory, and creates it if necessary. After an error the
// copy may be incomplete, but not wrong.
func (e *Export) To(ctx context.Context, name string) (summary Summary, err error) {
	if len(e.Tags) > 0 && e.ClosureOf != nil {
		return summary, errors.New("tags and a closure can't be combined: a part of a closure is not complete")
	}
	if e.StorageDirectory != "" {
		if err := refuseOverlap(name, e.StorageDirectory); err != nil {
			return summary, err
		}
	}
	r := &run{Export: e, summary: &summary}
	if e.ClosureOf != nil {
		if r.closure, err = e.Storage.Index().Closure(ctx, e.ClosureOf); err != nil {
			return summary, err
		}
		r.absent = make(map[narinfo.PathHash]struct{})
		for _, hash := range e.ClosureOf {
			if r.closure.Missing(hash) {
				return summary, fmt.Errorf("closure of %s: it has no narinfo: nothing was exported", hash)
			}
		}
	}
	if r.tree, err = openTree(name, e.DryRun, e.Adopt); err != nil {
		return summary, err
	}
	r.tree.fault = e.fault
	defer func() { err = errors.Join(err, r.tree.close()) }()
	var refused error
	if e.Delete && !e.AcceptLoss {
		refused = r.refuseLoss(ctx)
		if refused != nil && (!e.DryRun || !errors.Is(refused, ErrLoss)) {
			return summary, refused
		}
	}
	if err := r.tree.mark(); err != nil {
		return summary, err
	}
	if err := r.items(ctx); err != nil {
		return summary, err
	}
	return summary, errors.Join(r.sweep(ctx), refused)
}

// run is an export in progress.
type run struct {
	*Export
	tree    *tree
	summary *Summary
	closure *index.Closure
	absent  map[narinfo.PathHash]struct{} // missing in the closure, and reported
	pending []pending
	noLinks bool // the copy is on another file system
	// narinfos and nars count the files that a sweep checks.
	narinfos, nars int64
}

// pending is an item with all its nars in the copy. Its narinfo is written, but not visible
// yet.
type pending struct {
	temporary, name string
	result          Result
}

// items exports all items.
func (r *run) items(ctx context.Context) (err error) {
	if err := r.cacheInfo(); err != nil {
		return err
	}
	// Finish complete items even after an error.
	defer func() {
		if showErr := r.show(); showErr != nil && err == nil {
			err = showErr
		}
	}()
	for row, err := range r.rowsWanted(ctx) {
		if err == nil {
			err = ctx.Err()
		}
		if err == nil {
			err = r.item(ctx, row, maxTries)
		}
		if err == nil && len(r.pending) >= batchSize {
			err = r.show()
		}
		if err != nil {
			return fmt.Errorf("export: %w", err)
		}
	}
	return nil
}

// rowsWanted returns the items that the tags or the closure select.
func (r *run) rowsWanted(ctx context.Context) iter.Seq2[*index.Item, error] {
	if r.closure != nil {
		return r.Storage.Index().ItemsOf(ctx, r.closure)
	}
	return r.Storage.Index().Items(ctx, r.Tags...)
}

// cacheInfo writes nix-cache-info if necessary.
func (r *run) cacheInfo() error {
	const name = "nix-cache-info"
	if text, err := r.tree.read(name, int64(len(narinfo.CacheInfo))); err == nil && string(text) == narinfo.CacheInfo {
		return nil
	}
	temporary, err := r.tree.write([]byte(narinfo.CacheInfo))
	if err == nil {
		err = r.tree.rename(temporary, name)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", name, r.tree.explain(err))
	}
	return nil
}

// show flushes the nars and narinfos of pending items, and then makes the narinfos visible.
func (r *run) show() error {
	if len(r.pending) == 0 {
		return nil
	}
	shown := r.pending
	r.pending = r.pending[:0]
	if err := r.tree.sync(); err != nil {
		return err
	}
	for _, p := range shown {
		if err := r.tree.rename(p.temporary, p.name); err != nil {
			if err = r.tree.explain(err); isFatal(err) {
				return fmt.Errorf("write %s: %w", p.name, err)
			}
			p.result.Outcome, p.result.Err = Failed, fmt.Errorf("write %s: %w", p.name, err)
		}
		r.done(p.result)
	}
	return nil
}

// done counts and reports a result.
func (r *run) done(result Result) {
	s := r.summary
	switch result.Outcome {
	case Unchanged:
		s.Unchanged++
	case Added:
		s.Added++
	case Updated:
		s.Updated++
	case Skipped:
		s.Skipped++
	case Failed:
		s.Failed++
	}
	if r.Report != nil {
		r.Report(result)
	}
}

// closureLacks reports items without a narinfo that the item refers to, each once.
func (r *run) closureLacks(item *storage.Item) {
	for _, reference := range item.Narinfo.References {
		if _, reported := r.absent[reference.Hash]; reported || !r.closure.Missing(reference.Hash) {
			continue
		}
		r.absent[reference.Hash] = struct{}{}
		r.done(Result{Outcome: Skipped, Name: reference.String(),
			Err: fmt.Errorf("%s refers to it, but it has no narinfo", item.Narinfo.StorePath)})
	}
}

// wants reports whether an item is selected, by its row.
func (r *run) wants(ctx context.Context, row *index.Item) (bool, error) {
	if row == nil || !row.WithdrawnAt.IsZero() || r.closure != nil && !r.closure.Has(row.Hash) {
		return false, nil
	}
	if len(r.Tags) == 0 {
		return true, nil
	}
	has, err := r.Storage.Index().Tags(ctx, row.Hash)
	if err != nil {
		return false, err
	}
	for _, tag := range r.Tags {
		if !slices.Contains(has, tag) {
			return false, nil
		}
	}
	return true, nil
}

// refuseOverlap returns an error if one of the directories is below the other.
func refuseOverlap(name, storageDirectory string) error {
	if overlap, err := disk.Overlap(name, storageDirectory); err != nil {
		return err
	} else if overlap {
		return fmt.Errorf("%s overlaps with the storage %s: name another directory", name, storageDirectory)
	}
	// A directory may be mounted twice.
	ours, err1 := os.Stat(filepath.Join(name, narDirectory))
	theirs, err2 := os.Stat(filepath.Join(storageDirectory, narDirectory))
	if err1 == nil && err2 == nil && os.SameFile(ours, theirs) {
		return fmt.Errorf("%s/%s is that of the storage %s: name another directory", name, narDirectory, storageDirectory)
	}
	return nil
}
