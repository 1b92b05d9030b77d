package fetch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/mirror/nars"
	"nar-herder/mirror/nars/spool"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
)

// job is an item without a stored nar.
type job struct {
	*storage.Item
	// entry is its new row; nil for a row that stays.
	entry *index.Entry
	// written says that the last attempt wrote the row, and refused why it could not. obsolete
	// are names in the storage that the row may no longer claim.
	written  bool
	refused  error
	obsolete []string
}

// newJob makes a job. entry is nil for an item of the index.
func (r *run) newJob(item *storage.Item, entry *index.Entry) *job {
	j := &job{Item: item, entry: entry}
	if entry != nil {
		entry.AddedAt, entry.Origin, entry.FreshUntil = item.AddedAt, item.Origin, item.FreshUntil
	}
	item.Write = func(tx *index.Tx) error { return r.write(tx, j) }
	return j
}

// fetch stores the nar of an item with its row, and reports the result.
func (r *run) fetch(ctx context.Context, j *job) {
	result := Result{Path: j.Narinfo.StorePath}
	n, err := r.fetchAny(ctx, j)
	if err == nil && j.written {
		result.Fetched, result.Bytes = true, max(j.StoredSize(n), 0)
	} else if err == nil { // another process has stored it
		err = r.index.Update(ctx, j.Write)
	}
	result.Err, result.Pinned = err, err == nil && r.isPinned(j.Hash)
	if err == nil {
		// The next start of a server deletes those that can't be deleted now.
		_, _, _ = r.Storage.DeleteUnclaimed(ctx, j.obsolete, 0)
	}
	switch {
	case errors.Is(err, nars.ErrFull):
		r.stop(err)
	case errors.Is(err, storage.ErrNotWanted) && j.refused != nil:
		result.Err = j.refused
	case errors.Is(err, storage.ErrNotStored):
		result.Err = errNoNar
	}
	r.report(ctx, result, concernsAll(err))
}

// concernsAll reports whether an error is about the sources or this machine, and not about one
// item.
func concernsAll(err error) bool {
	for _, ofItem := range []error{storage.ErrNotStored, storage.ErrNotWanted, narcheck.ErrWrongNar, narcheck.ErrUnreadable, errDropped} {
		if errors.Is(err, ofItem) {
			return false
		}
	}
	return err != nil
}

// fetchAny stores one file of an item: the smallest, as Guix's client would choose, or another
// if no source has that.
func (r *run) fetchAny(ctx context.Context, j *job) (n int, err error) {
	err = errDropped
	for _, n := range smallestFirst(j.Item) {
		err = r.fetchFile(ctx, j, n)
		if !errors.Is(err, storage.ErrNotStored) && !errors.Is(err, narcheck.ErrWrongNar) && !errors.Is(err, narcheck.ErrUnreadable) {
			return n, err
		}
	}
	return -1, err
}

// smallestFirst returns which files of an item can be stored. Those of unknown size are last.
func smallestFirst(item *storage.Item) (files []int) {
	for n, name := range item.FileNames() {
		if name != "" && !item.HasDropped(n) {
			files = append(files, n)
		}
	}
	size := func(n int) uint64 { return uint64(item.Narinfo.Files[n].Size) } // -1 is the largest
	slices.SortStableFunc(files, func(a, b int) int { return cmp.Compare(size(a), size(b)) })
	return files
}

// fetchFile stores one file of an item.
func (r *run) fetchFile(ctx context.Context, j *job, n int) error {
	for {
		j.written, j.refused, j.obsolete = false, nil, nil
		err := r.Nars.Fetch(ctx, j.Item, n)
		if !errors.Is(err, spool.ErrInUse) {
			return err
		}
		if err := pace.Sleep(ctx, r.inUsePause); err != nil {
			return err
		}
	}
}

// write writes the row of an item, and tags and pins it. It counts as used now: otherwise, the
// nar of an item that has been known for long would be evicted next.
func (r *run) write(tx *index.Tx, j *job) error {
	j.written = true
	if j.entry != nil {
		if err := r.writeRow(tx, j); err != nil {
			return err
		}
	}
	err := r.mark(tx, j.Hash)
	if errors.Is(err, storage.ErrNotFound) {
		return storage.ErrNotWanted
	} else if err != nil {
		return err
	}
	_, err = tx.CountUses([]index.Uses{{Hash: j.Hash, Last: r.Storage.Now()}}, math.MaxInt64)
	return err
}

// writeRow writes the row of an item. An item that was imported or mirrored meanwhile stays as
// it is.
func (r *run) writeRow(tx *index.Tx, j *job) error {
	row, err := tx.Item(j.Hash)
	var damage *index.Damage
	if errors.As(err, &damage) {
		row, err = tx.Renew(damage, j.entry)
	}
	if errors.Is(err, storage.ErrNotFound) {
		return tx.Put(j.entry, nil)
	} else if err != nil {
		return err
	}
	old, err := narinfo.Parse(row.Text)
	if err != nil {
		return err
	}
	withdrawn := !row.WithdrawnAt.IsZero()
	switch isSame := old.NarHash == j.entry.Narinfo.NarHash; {
	case withdrawn && !isSame:
		j.refused = errWithdrawn
		return storage.ErrNotWanted
	case !isSame && (row.Origin == 0 || row.Stored != 0):
		j.refused = errAnother
		return storage.ErrNotWanted
	case !withdrawn && row.Origin == 0:
		return nil
	case !withdrawn && bytes.Equal(row.Text, j.entry.Narinfo.Text):
		return tx.SetOrigin(j.Hash, j.entry.Origin, j.entry.FreshUntil)
	}
	item, err := storage.NewItem(row)
	if err != nil {
		return err
	}
	j.entry.Stored, j.entry.Sizes, j.entry.VerifiedAt = 0, nil, time.Time{}
	storage.CarryStored(j.entry, item)
	j.obsolete = item.NarNames()
	return errors.Join(tx.AddPendingDeletes(j.obsolete), tx.Put(j.entry, row))
}
