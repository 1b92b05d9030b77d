// Package export makes a static copy of the store: a directory of HASH.narinfo,
// nar/… and nix-cache-info that any server of files can serve, that rsync can
// carry away, and that Guix's client reads by a file:// URL.
//
// The copy is brought up to date in place. At each moment, also after a crash,
// there is no narinfo in it that names a nar which is not there: nars come before
// the narinfo that names them and go after it.
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

// Export says what is exported, and how.
type Export struct {
	Storage *storage.Storage
	// StorageDirectory is where the storage lies, which the copy must be apart
	// from; "" for one that lies in no directory.
	StorageDirectory string

	// Tags are those that items must all have.
	Tags []index.Tag
	// ClosureOf are items that are exported with all that they refer to, and
	// nothing else; nil for all items.
	ClosureOf []narinfo.PathHash

	// Delete removes what is in the copy and is not exported, or no longer.
	Delete bool
	// AcceptLoss lets Delete empty the copy, or remove more than a tenth of it.
	AcceptLoss bool
	// Adopt allows a directory that has files and was not made by an export.
	Adopt bool
	// DryRun changes nothing, and tells what would be done.
	DryRun bool
	// Copy never makes a hard link of a file of the storage.
	Copy bool

	// Report takes what became of each item, and of what is left of others; nil
	// for nobody who wants to know.
	Report func(Result)
	// Swept takes how many more files of the copy were looked at for whether
	// they are still exported; nil for nobody who wants to know.
	Swept func(files int)

	// fault stands before a step that changes the copy, in tests.
	fault func(step string) error
}

// Result is what became of an item, or of a file of the copy.
type Result struct {
	Outcome Outcome
	// Name is the store path or the hash of an item, or the name of a file of
	// the copy.
	Name string
	// Bytes is the length of the nars that came into the copy.
	Bytes int64
	// Err says why it was skipped, or has failed.
	Err error
}

// Outcome is how an export of an item ended.
type Outcome int

const (
	// Unchanged: the copy had it already.
	Unchanged Outcome = iota
	// Added: its narinfo is new in the copy.
	Added
	// Updated: its narinfo has changed, or one of its nars had to be renewed.
	Updated
	// Skipped: it can't be exported, as a nar of it is not stored, or it has no
	// narinfo to be told of.
	Skipped
	// Failed: something here is broken. What the copy has of it stays.
	Failed
)

// Summary is what an export came to.
type Summary struct {
	Unchanged, Added, Updated, Skipped, Failed int64
	// Withdrawn counts items that clients are no longer told of.
	Withdrawn int64
	// Linked and Copied count the nars that came into the copy by hard links and
	// by copies, and their lengths.
	Linked, LinkedBytes, Copied, CopiedBytes int64
	// StaleNarinfos and StaleNars count files of the copy that are not exported,
	// or no longer: they were removed with Delete, and left otherwise.
	// StaleBytes is the length of those nars; what of it is hard links has taken
	// no room.
	StaleNarinfos, StaleNars, StaleBytes int64
}

// batchSize is how many items are flushed to the disk together. The file system
// is flushed as a whole each time, which is for others to wait for as well.
const batchSize = 500

// To brings the copy in the directory up to date, which is made when there is
// none. The error is what kept it from going on: the copy is then incomplete,
// and what it has is good.
func (e *Export) To(ctx context.Context, name string) (summary Summary, err error) {
	if len(e.Tags) > 0 && e.ClosureOf != nil {
		return summary, errors.New("items are chosen by their tags or by a closure, not by both: part of a closure is none")
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
				return summary, fmt.Errorf("closure of %s: there is no narinfo of it: nothing was exported", hash)
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

// run is an export under way.
type run struct {
	*Export
	tree    *tree
	summary *Summary
	closure *index.Closure
	absent  map[narinfo.PathHash]struct{} // of the closure, and told of
	pending []pending
	noLinks bool // to the file system of the copy
	// narinfos and nars count the files that a sweep looks at.
	narinfos, nars int64
}

// pending is an item whose nars are there, and whose narinfo is written, but not
// shown yet.
type pending struct {
	temporary, name string
	result          Result
}

// items exports all items.
func (r *run) items(ctx context.Context) (err error) {
	if err := r.cacheInfo(); err != nil {
		return err
	}
	// What is complete is shown, also when the next can't be.
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

// rowsWanted are the items that the tags or the closure select.
func (r *run) rowsWanted(ctx context.Context) iter.Seq2[*index.Item, error] {
	if r.closure != nil {
		return r.Storage.Index().ItemsOf(ctx, r.closure)
	}
	return r.Storage.Index().Items(ctx, r.Tags...)
}

// cacheInfo writes nix-cache-info, unless it is there.
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

// show makes the nars of pending items, and the texts of their narinfos, survive
// a loss of power, and then shows the narinfos.
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

// done counts and tells of a result.
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

// closureLacks tells of items that are referred to in the closure and have no
// narinfo, each once.
func (r *run) closureLacks(item *storage.Item) {
	for _, reference := range item.Narinfo.References {
		if _, told := r.absent[reference.Hash]; told || !r.closure.Missing(reference.Hash) {
			continue
		}
		r.absent[reference.Hash] = struct{}{}
		r.done(Result{Outcome: Skipped, Name: reference.String(),
			Err: fmt.Errorf("%s refers to it, and there is no narinfo of it", item.Narinfo.StorePath)})
	}
}

// wants says whether an item is one of those to be exported, as far as its row
// tells. An error is one of the index.
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

// refuseOverlap makes sure that neither of the two directories lies in the
// other, whatever their names say.
func refuseOverlap(name, storageDirectory string) error {
	if overlap, err := disk.Overlap(name, storageDirectory); err != nil {
		return err
	} else if overlap {
		return fmt.Errorf("%s lies in the storage %s, or the storage lies in it: name a directory apart from it", name, storageDirectory)
	}
	// One that is mounted at two places.
	ours, err1 := os.Stat(filepath.Join(name, narDirectory))
	theirs, err2 := os.Stat(filepath.Join(storageDirectory, narDirectory))
	if err1 == nil && err2 == nil && os.SameFile(ours, theirs) {
		return fmt.Errorf("%s/%s is that of the storage %s: name a directory apart from it", name, narDirectory, storageDirectory)
	}
	return nil
}
