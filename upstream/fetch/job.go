package fetch

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"slices"
	"time"

	"nar-herder/internal/pace"
	"nar-herder/mirror/nars"
	"nar-herder/mirror/nars/spool"
	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/storage/narcheck"
	"nar-herder/upstream"
)

// job is an item without a stored nar.
type job struct {
	Item
	item *storage.Item
	// entry is its new row, and origin the source of that; nil and "" for a row that stays.
	entry  *index.Entry
	origin string
	// written says that the last attempt wrote the row, and refused why it could not.
	written bool
	refused error
}

// newJob makes a job. answer is nil for an item of the index.
func (r *run) newJob(named Item, item *storage.Item, answer *upstream.Answer) *job {
	j := &job{Item: named, item: item}
	if answer != nil {
		j.entry, j.origin = r.index.Prepare(item.Narinfo), answer.Upstream.String()
		j.entry.AddedAt = r.Storage.Now()
		j.entry.FreshUntil = j.entry.AddedAt.Add(max(answer.MaxAge, 0))
	}
	j.item.Write = func(tx *index.Tx) error { return r.write(tx, j) }
	return j
}

// fetch stores the nar of an item with its row, and reports the result.
func (r *run) fetch(ctx context.Context, j *job) {
	result := Result{Item: j.Item}
	n, err := r.fetchAny(ctx, j)
	if err == nil && j.written {
		result.Fetched, result.Bytes = true, max(j.item.StoredSize(n), 0)
	} else if err == nil { // another process has stored it
		err = r.index.Update(ctx, j.item.Write)
	}
	result.Err = err
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
	for _, ofItem := range []error{storage.ErrNotStored, storage.ErrNotWanted, narcheck.ErrWrongNar, narcheck.ErrUnreadable, errNoFile} {
		if errors.Is(err, ofItem) {
			return false
		}
	}
	return err != nil
}

// fetchAny stores one file of an item: the smallest, as Guix's client would choose, or another
// if no source has that.
func (r *run) fetchAny(ctx context.Context, j *job) (n int, err error) {
	err = errNoFile
	for _, n := range smallestFirst(j.item) {
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

// fetchFile stores one file of an item. If it is wrong, another source may have the right one.
func (r *run) fetchFile(ctx context.Context, j *job, n int) error {
	for wrong := 1; ; {
		j.written, j.refused = false, nil
		err := r.Nars.Fetch(ctx, j.item, n)
		switch {
		case errors.Is(err, narcheck.ErrWrongNar) && wrong < r.Sources:
			wrong++
		case errors.Is(err, spool.ErrInUse):
			if err := pace.Sleep(ctx, inUsePause); err != nil {
				return err
			}
		default:
			return err
		}
	}
}

// write writes the row of an item, and tags and pins it.
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
	}
	return err
}

// writeRow writes the row of an item. An item that was imported or mirrored meanwhile stays as
// it is.
func (r *run) writeRow(tx *index.Tx, j *job) (err error) {
	if j.entry.Origin, err = tx.Origin(j.origin); err != nil {
		return err
	}
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
	return tx.Put(j.entry, row)
}
