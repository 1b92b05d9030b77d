package fetch

import (
	"context"
	"errors"
	"strings"
	"sync"
	"time"

	"nar-herder/narinfo"
	"nar-herder/storage"
	"nar-herder/storage/index"
	"nar-herder/upstream"
)

// resolveAll finds out what is stored, and the narinfos of all other items, and sends a job for
// each of these.
func (r *run) resolveAll(ctx context.Context, jobs chan<- *job) error {
	for len(r.wanted) > 0 {
		items := r.wanted[:min(r.chunk, len(r.wanted))]
		r.wanted = r.wanted[len(items):]
		found, err := r.resolve(ctx, items)
		if err != nil {
			return err
		}
		for _, job := range found {
			select {
			case jobs <- job:
			case <-ctx.Done():
				return nil
			}
		}
	}
	return nil
}

// resolve returns the jobs for a chunk of items.
func (r *run) resolve(ctx context.Context, items []narinfo.StorePath) (jobs []*job, err error) {
	var unknown, stored []narinfo.StorePath
	var hashes []narinfo.PathHash
	for _, item := range items {
		hashes = append(hashes, item.Hash)
	}
	var referred []narinfo.StorePath
	now := r.Storage.Now()
	err = r.index.EachAt(ctx, hashes, func(i int, row *index.Item, _ error) error {
		if row == nil || !isUsable(row, now) { // asking repairs a damaged row
			unknown = append(unknown, items[i])
			return nil
		}
		item, err := storage.NewItem(row)
		if err != nil {
			return err
		}
		referred = r.appendReferences(referred, item.Narinfo)
		if row.Stored != 0 {
			stored = append(stored, items[i])
			return nil
		}
		jobs = append(jobs, r.newJob(item, nil))
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := r.markStored(ctx, stored); err != nil {
		return nil, err
	}
	for _, answer := range r.ask(ctx, unknown) {
		n := answer.Narinfo
		if err := storage.CheckNarinfo(n); err != nil {
			r.report(ctx, Result{Path: n.StorePath, Err: err}, false)
			continue
		}
		origin, err := r.origin(ctx, answer.Upstream.String())
		if err != nil {
			return nil, err
		}
		item, err := storage.NewItem(&index.Item{
			Hash: n.StorePath.Hash, Text: n.Text, AddedAt: now, Origin: origin, FreshUntil: now.Add(max(answer.MaxAge, 0)),
		})
		if err != nil {
			return nil, err
		}
		referred = r.appendReferences(referred, n)
		jobs = append(jobs, r.newJob(item, r.index.Prepare(item.Narinfo)))
	}
	r.want(referred)
	return jobs, nil
}

// origin returns the number of an upstream.
func (r *run) origin(ctx context.Context, name string) (int64, error) {
	if number, known := r.origins[name]; known {
		return number, nil
	}
	err := r.index.Update(ctx, func(tx *index.Tx) (err error) {
		r.origins[name], err = tx.Origin(name)
		return err
	})
	return r.origins[name], err
}

// isUsable reports whether no source has to be asked for the narinfo in a row.
func isUsable(row *index.Item, now time.Time) bool {
	if !row.WithdrawnAt.IsZero() {
		return false
	}
	return row.Stored != 0 || row.Origin == 0 || now.Before(row.FreshUntil)
}

func (r *run) appendReferences(to []narinfo.StorePath, n *narinfo.Narinfo) []narinfo.StorePath {
	if r.Closure {
		for _, path := range n.OtherReferences() {
			if _, seen := r.seen[path.Hash]; !seen {
				path.Name = strings.Clone(path.Name) // it is a part of the text
				to = append(to, path)
			}
		}
	}
	return to
}

// ask returns the answers for items that a source has, and reports the others.
func (r *run) ask(ctx context.Context, items []narinfo.StorePath) (has []upstream.Answer) {
	if len(items) == 0 {
		return nil
	}
	byHash := make(map[narinfo.PathHash]narinfo.StorePath, len(items))
	hashes := make([]narinfo.PathHash, len(items))
	for i, item := range items {
		byHash[item.Hash], hashes[i] = item, item.Hash
	}
	var mu sync.Mutex
	r.Narinfos.Ask(ctx, hashes, nil, func(hash narinfo.PathHash, answer upstream.Answer) {
		if answer.Err == nil {
			mu.Lock()
			defer mu.Unlock()
			has = append(has, answer)
			return
		}
		notFound := errors.Is(answer.Err, storage.ErrNotFound)
		if notFound {
			answer.Err = errNoSource
		}
		r.report(ctx, Result{Path: byHash[hash], Err: answer.Err}, !notFound)
	})
	return has
}

// markStored tags and pins items that are stored, and reports them.
func (r *run) markStored(ctx context.Context, items []narinfo.StorePath) error {
	if len(r.Tags) > 0 || len(r.pinned) > 0 {
		err := r.index.Update(ctx, func(tx *index.Tx) error {
			for _, item := range items {
				if err := r.mark(tx, item.Hash); err != nil && !errors.Is(err, storage.ErrNotFound) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	for _, item := range items {
		r.report(ctx, Result{Path: item, Pinned: r.isPinned(item.Hash)}, false)
	}
	return nil
}

// isPinned reports whether an item is to be pinned.
func (r *run) isPinned(hash narinfo.PathHash) bool {
	_, is := r.pinned[hash]
	return is
}

// mark tags and pins an item.
func (r *run) mark(tx *index.Tx, hash narinfo.PathHash) error {
	if err := tx.AddTags(hash, r.Tags); err != nil || !r.isPinned(hash) {
		return err
	}
	_, err := tx.Pin(hash, r.Storage.Now())
	return err
}
